# The other scripts source this: it makes a virtual environment in .venv with the tested versions, once.
#
#   source scripts/environment.sh [EXTRA]      EXTRA: an extra of pyproject.toml, such as dev
#
# PYTHON chooses the interpreter (3.11 or later; 3.11 is what the pinned versions were tested with).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

extra=${1:-}
wanted="$(cat pyproject.toml constraints.txt | cksum) $extra"
stamp=".venv/installed${extra:+-$extra}"

if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lors needs Python 3.11 or later")'
    .venv/bin/python -m pip --version >/dev/null 2>&1 || "${PYTHON:-python3}" -m venv --clear .venv
    torch=(torch)
    if ! command -v nvidia-smi >/dev/null; then
        # Without a GPU the CPU build is enough and saves gigabytes; it comes from its own index, if that answers.
        cpu=https://download.pytorch.org/whl/cpu
        .venv/bin/python -c "import urllib.request as u; u.urlopen('$cpu/torch/', timeout=10)" 2>/dev/null &&
            torch+=(--extra-index-url "$cpu")
    fi
    echo "installing into .venv (a few minutes, once)" >&2
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt "${torch[@]}"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".${extra:+[$extra]}"
    echo "$wanted" >"$stamp"
fi
export PATH="$PWD/.venv/bin:$PATH"
