#!/usr/bin/env bash
# LoRS (arXiv 2501.08582), figures 2 to 4: time, peak memory and FLOPs of a training step of every method, in one run of
# `lors bench`. Figures 2 and 4 are over lengths at rank 16, figure 3 over ranks at length 2048, on all of Llama-3-8B.
#
#   scripts/reproduce/lors_cost.sh [paper|smollm2] [option of lors bench ...]
#   scripts/reproduce/lors_cost.sh paper --predict --hardware a100     # from a roofline, without a GPU
set -euo pipefail
scale=${1:-paper}
shift || true
case $scale in
paper) # the first value of each list is the one of the other lists' points
    shape=(--shape llama-3-8b --scopes model --sequence-lengths 2048,512,1024 --ranks 16,32,64 --dtype bfloat16) ;;
smollm2) shape=(--shape smollm2-135m --sequence-lengths 256 --batch-sizes 2 --ranks 16) ;;
*)
    echo "expected paper or smollm2, got $scale" >&2
    exit 2
    ;;
esac
output=${OUTPUT:-runs/reproduce/lors_cost_$scale}
exec lors bench "${shape[@]}" --output-dir "$output" "$@"
