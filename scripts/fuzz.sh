#!/usr/bin/env bash
# Hands broken configs to the commands, with --dry-run: scripts/fuzz.sh [COUNT] [SEED], 10,000 of them if left out. Each
# has to be understood, or refused by key with exit 2, within five seconds. Failures are printed with how to repeat them.
set -euo pipefail
cd "$(dirname "$0")/.."
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 HF_HUB_DISABLE_PROGRESS_BARS=1
exec python -m tests.fuzz.main "$@"
