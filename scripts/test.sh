#!/usr/bin/env bash
# The checks: format, lint, types, tests, two at a time. Arguments go to pytest: scripts/test.sh tests/adapters -k lors
source "$(dirname "$0")/environment.sh" dev
ruff format --check .
ruff check .
mypy
export OMP_NUM_THREADS=1 # two processes share the cores
exec python -m pytest --numprocesses 2 --dist worksteal "$@"
