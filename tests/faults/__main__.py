"""Disturb runs: ``python -m tests.faults --help``."""

import sys

from tests.faults.main import main

sys.exit(main())
