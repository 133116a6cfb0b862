#!/usr/bin/env bash
# LoRAM (arXiv 2502.13533), table 5: peak memory, latency and throughput of LoRA on Llama-2-7B and 13B, and of LoRAM-Stru on
# 13B, for 1,024 rows of 512 tokens in batches of 128 and micro-batches of 4.
#
#   scripts/reproduce/loram_cost.sh [paper|smollm2] [FOLDER [key=value ...]]
#
# Each training is a process of its own; the numbers are those that lors writes into its manifest. Latency is the time of
# the whole training; on one device.
set -euo pipefail
scale=${1:-paper}
folder=${2:-runs/reproduce/loram_cost_$scale}
shift $(($# < 2 ? $# : 2))
here=$(dirname "$0")
case $scale in
paper)
    config=$here/../../configs/loram/llama-2-13b_stru.yaml
    models=(7B=meta-llama/Llama-2-7b-hf 13B=meta-llama/Llama-2-13b-hf)
    common=(train.max_steps=8 train.base=dense train.warmup=0)
    ;;
smollm2) # two CPU cores; there is no smaller sibling
    config=$here/../../configs/loram/smollm2-135m.yaml
    models=(135M=smollm2-135m)
    common=(train.max_steps=2 train.batch_size=4 train.micro_batch_size=2 train.sequence_length=128)
    ;;
*)
    echo "expected paper or smollm2, got $scale" >&2
    exit 2
    ;;
esac

train() { lors train "$config" --quiet "${common[@]}" "${@:3}" "output_dir=$folder/$1" "train.input=$2" >/dev/null; }
for model in "${models[@]}"; do
    train "lora_${model%%=*}" "${model#*=}" "$@"
done
lors prune "$config" --quiet "output_dir=$folder/loram" "$@" >/dev/null
train loram "$folder/loram/pruned" "$@"

python - "$folder" <<'PYTHON'
import json, pathlib, sys

print(f"{'training':12} {'parameters':>16} {'peak MiB':>10} {'latency s':>10} {'rows/s':>8}")
for manifest in sorted(pathlib.Path(sys.argv[1]).glob("*/adapter/lors.json"), key=lambda path: path.stat().st_mtime):
    made = json.loads(manifest.read_text())
    peak, train = made["peak_memory"], made["config"]["train"]
    after = manifest.parents[1] / "pruned/lors.json"
    count = f"{json.loads(after.read_text())['parameters']['after']:,}" if after.is_file() else "whole"
    rows = made["steps"] * train["batch_size"]
    size = peak.get("gpu_bytes", peak["host_bytes"]) / 2**20
    print(f"{manifest.parents[1].name:12} {count:>16} {size:10,.0f} {made['seconds']:10.2f} {rows / made['seconds']:8.3f}")
PYTHON
