#!/usr/bin/env bash
# The main job on a real model: prune SmolLM2-135M to 2:4, train with LoRS, merge with proof, compare. See
# configs/quickstart.yaml. Arguments go to lors: scripts/quickstart.sh train.max_steps=160 output_dir=runs/longer
source "$(dirname "$0")/environment.sh" ""
exec lors run configs/quickstart.yaml "$@"
