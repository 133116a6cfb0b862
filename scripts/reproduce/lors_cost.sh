#!/usr/bin/env bash
# LoRS (arXiv 2501.08582): time, peak memory and FLOPs of a training step of every method, in one run of `lors bench`.
#
#   scripts/reproduce/lors_cost.sh [paper|smollm2] [option of lors bench ...]
set -euo pipefail
scale=${1:-paper}
shift || true
case $scale in
paper) shape=(--shape llama-2-7b --sequence-lengths 512,1024,2048 --batch-sizes 1,2,4,8 --ranks 16 --dtype bfloat16) ;;
smollm2) shape=(--shape smollm2-135m --sequence-lengths 256 --batch-sizes 2 --ranks 16) ;;
*)
    echo "expected paper or smollm2, got $scale" >&2
    exit 2
    ;;
esac
output=${OUTPUT:-runs/reproduce/lors_cost_$scale}
exec lors bench "${shape[@]}" --output-dir "$output" "$@"
