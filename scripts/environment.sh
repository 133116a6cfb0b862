# The other scripts source this: it makes a virtual environment in .venv with the tested versions, once.
#
#   source scripts/environment.sh [EXTRA]      EXTRA: an extra of pyproject.toml, such as dev
#
# PYTHON chooses the interpreter (3.11 or later; 3.11 is what the pinned versions were tested with). uv installs, which
# is fetched if it is not there; where it fails, and with INSTALLER=pip, pip does.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

extra=${1:-}
wanted="$(cat pyproject.toml constraints.txt | cksum) $extra"
stamp=".venv/installed${extra:+-$extra}"
unset PYTHONDONTWRITEBYTECODE # each process would compile all libraries again, for half a minute

if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lors needs Python 3.11 or later")'
    .venv/bin/python -m pip --version >/dev/null 2>&1 || "${PYTHON:-python3}" -m venv --clear .venv
    pip=(.venv/bin/python -m pip install --quiet --disable-pip-version-check)
    uv=()
    if [ "${INSTALLER:-uv}" = uv ] && { command -v uv >/dev/null || "${pip[@]}" uv 2>/dev/null; }; then
        uv=("$(PATH="$PATH:.venv/bin" command -v uv)" pip install --quiet --python .venv/bin/python)
        uv+=(--index-strategy unsafe-best-match) # the newest of all indexes, as pip has it, whose settings it gets
        [ -n "${PIP_INDEX_URL:-}" ] && uv+=(--default-index "$PIP_INDEX_URL")
        for place in ${PIP_EXTRA_INDEX_URL:-}; do uv+=(--index "$place"); done
        for place in ${PIP_FIND_LINKS:-}; do uv+=(--find-links "$place"); done
    fi
    install() {
        [ "${#uv[@]}" -gt 0 ] && "${uv[@]}" --constraint constraints.txt "$@" && return
        "${pip[@]}" --constraint constraints.txt "$@"
    }
    torch=(torch)
    if ! command -v nvidia-smi >/dev/null; then
        # Without a GPU the CPU build is enough and saves gigabytes; it comes from its own index, if that answers.
        cpu=https://download.pytorch.org/whl/cpu
        .venv/bin/python -c "import urllib.request as u; u.urlopen('$cpu/torch/', timeout=10)" 2>/dev/null &&
            torch+=(--extra-index-url "$cpu")
    fi
    echo "installing into .venv (a minute or a few, once)" >&2
    install "${torch[@]}"
    install --editable ".${extra:+[$extra]}"
    echo "$wanted" >"$stamp"
fi
export PATH="$PWD/.venv/bin:$PATH"
