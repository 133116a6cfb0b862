#!/usr/bin/env bash
# Kills runs and lets reads and writes fail at their file-system events, and looks at what is left: all of it, while the
# tests do a short part. `--help` lists the options; the exit status is 1 if anything was found.
set -euo pipefail
cd "$(dirname "$0")/.."
exec python -m tests.faults "$@"
