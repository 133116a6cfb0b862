#!/usr/bin/env bash
# Everything that needs a GPU, in one run of at most 8 minutes. OUT/gpu_check.json grows with each step, so that a run
# that is cut off leaves what it has measured. A step that fails or takes too long does not stop the others.
#
#   scripts/gpu_check.sh OUT                      on a machine with an NVIDIA GPU and torch
#   GPU_CHECK_DEVICE=cpu scripts/gpu_check.sh OUT     tiny versions of all steps, to check the script itself
#   scripts/gpu_check.sh --list                   the steps with their time limits
#
# For a machine without a network: download first, copy DIR there (its folders are small enough to copy one by one),
# and name it in the run.
#
#   scripts/gpu_check.sh --wheels DIR [--python 3.12]
#   scripts/gpu_check.sh OUT --from DIR
set -euo pipefail
repository="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
export PYTHONPATH="$repository${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
exec "${PYTHON:-python3}" "$repository/scripts/gpu_check.py" "$@"
