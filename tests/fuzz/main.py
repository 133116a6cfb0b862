"""Many cases in one process: python -m tests.fuzz.main COUNT SEED. Each failure is printed with how to repeat it."""

import argparse
import hashlib
import math
import re
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests import pico
from tests.fuzz import runs
from tests.fuzz.cases import Case, cases

PART = 50  # cases of one seed: hypothesis makes many of a seed by small changes of those before
SETTINGS = settings(phases=[Phase.generate], deadline=None, database=None, suppress_health_check=list(HealthCheck))


def main() -> int:
    """Run them; 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=10_000)
    parser.add_argument("seed", type=int, nargs="?", default=0)
    parser.add_argument("--keep", type=Path, default=Path("fuzz-failures"), help="where failing configs are kept")
    arguments = parser.parse_args()
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        pico.make(pico.tokenizer(), root / "weights")
        runs.build(root, root / "weights")

        def each(case: Case) -> None:
            found["cases"] += 1
            if fault := runs.fault(case, root):
                kind = re.sub(r"\d+|/\S+|'[^']*'", "_", fault)[-300:]
                found[kind] += 1
                if found[kind] < 3:
                    _report(case, fault, arguments.keep, root)

        for part in range(math.ceil(arguments.count / PART)):
            some = settings(SETTINGS, max_examples=min(PART, arguments.count - part * PART))
            seed(f"{arguments.seed}-{part}")(some(given(cases(str(root)))(each)))()
    cases_, kinds = found.pop("cases"), len(found)
    sys.stdout.write(f"{cases_} cases with seed {arguments.seed}, {found.total()} failures of {kinds} kinds\n")
    return 1 if kinds else 0


def _report(case: Case, fault: str, keep: Path, root: Path) -> None:
    keep.mkdir(exist_ok=True)
    path = keep / f"{hashlib.sha256(str(case).encode()).hexdigest()[:12]}.yaml"
    path.write_bytes(case.content)
    command = " ".join(repr(str(path) if one == "CONFIG" else one) for one in case.arguments)
    sys.stdout.write(f"FAILURE {fault}\n  config: {path}\n  command: lors {command}\n  places below {root}\n\n")
    sys.stdout.flush()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.exit(main())
