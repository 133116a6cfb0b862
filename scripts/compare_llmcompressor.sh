#!/usr/bin/env bash
# Side by side: `lors prune` and llm-compressor prune SmolLM2-135M to 2:4 with Wanda and with SparseGPT, from the same
# calibration tokens, in float32 on the CPU; with --methods gptq gptq-act-order both quantise it. It prints time, memory
# and perplexity; see compare_llmcompressor.py.
#
#   CALIBRATION=c4.jsonl.gz TEXT=wikitext2_test.jsonl.gz scripts/compare_llmcompressor.sh [--json FILE] [--methods ...]
#
# CALIBRATION and TEXT are .jsonl or .jsonl.gz files with a field "text"; relative paths are relative to the repository.
# REPEATS (1) is how often each command runs, THREADS (2) how many threads it has, WORK (runs/compare_llmcompressor)
# the folder of all results. Arguments go to compare_llmcompressor.py. llm-compressor gets an environment of its own, in
# .venv-llmcompressor. One repeat takes about a quarter of an hour on two cores.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export CALIBRATION=${CALIBRATION:-../shared/data/c4_300.jsonl.gz}
export TEXT=${TEXT:-../shared/data/wikitext2_raw_test_lines.jsonl.gz}
for name in CALIBRATION TEXT; do
    if [ ! -f "${!name}" ]; then
        echo "$name: a .jsonl or .jsonl.gz file with a field \"text\" is needed, but ${!name} does not exist." \
            "Set $name to one." >&2
        exit 2
    fi
done

source scripts/environment.sh "" # without an argument it would see those of this script

venv=.venv-llmcompressor
packages=(llmcompressor==0.14.0.1 transformers==5.17.0 huggingface_hub==1.33.0 compressed-tensors==0.19.0 auto-round==0.15.1)
wanted="${packages[*]} $(cksum <constraints.txt)"
if [ "$(cat "$venv/installed" 2>/dev/null)" != "$wanted" ]; then
    "$venv/bin/python" -m pip --version >/dev/null 2>&1 || "${PYTHON:-python3}" -m venv --clear "$venv"
    # The comparison runs on CPUs, so the CPU build of torch is enough; it comes from its own index, if that answers.
    torch=("$(grep '^torch==' constraints.txt)")
    cpu=https://download.pytorch.org/whl/cpu
    "$venv/bin/python" -c "import urllib.request as u; u.urlopen('$cpu/torch/', timeout=10)" 2>/dev/null &&
        torch+=(--extra-index-url "$cpu")
    echo "installing into $venv (a few minutes, once)" >&2
    # All versions are those of lors, except where llm-compressor needs an older one.
    grep -Ev '^(transformers|huggingface_hub|compressed-tensors)==' constraints.txt >"$venv/constraints.txt"
    pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check --constraint "$venv/constraints.txt")
    "${pip[@]}" "${torch[@]}"
    "${pip[@]}" "${packages[@]}"
    echo "$wanted" >"$venv/installed"
fi

# Both tools get the same threads, and neither gets a GPU or a network.
threads=${THREADS:-2}
export OMP_NUM_THREADS="$threads" MKL_NUM_THREADS="$threads" OPENBLAS_NUM_THREADS="$threads"
export CUDA_VISIBLE_DEVICES="" TOKENIZERS_PARALLELISM=false
MODEL="$(python -c "from lors_cli.models import source; print(source.resolve('smollm2-135m'))")"
export MODEL HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1
export LLMCOMPRESSOR_PYTHON="$venv/bin/python" REPEATS="${REPEATS:-1}" WORK="${WORK:-runs/compare_llmcompressor}"
exec python scripts/compare_llmcompressor.py compare "$@"
