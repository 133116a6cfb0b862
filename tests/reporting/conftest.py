"""Runs of one group, and runs with names that would break out of their cells."""

from pathlib import Path

import pytest

from lors_cli.reporting.table import Table
from lors_cli.tools.report import collect
from tests.reporting.synthetic import LOSSES, edit_json, make_run

EVIL = "</title><script>alert('x')</script>|$x_1^2$\\%&#~{\"[*\x1b[31m"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Three runs of one group, and one that was edited by hand."""
    for number, (method, rank) in enumerate((("lors", 16), ("spp", 16), ("lora", 8))):
        losses = {**LOSSES, "merged": [loss + 100 * number for loss in LOSSES["merged"]]}
        make_run(tmp_path / f"run{number}", train={"method": method, "rank": rank}, losses=losses)
    edited = make_run(tmp_path / "edited", train={"rank": 2})
    edit_json(edited / "eval/results.json", models__merged__perplexity__value=1.0)
    return tmp_path


@pytest.fixture
def evil(tmp_path: Path) -> Table:
    answers = {name: {EVIL: [1, 0, 1, 1], "other": [1, 1, 0, 1]} for name in ("dense", "pruned", "merged")}
    for rank in (2, 4):
        run = make_run(
            tmp_path / f"r{rank}",
            model=f"/models/{EVIL.replace('/', ' ')}",
            train={"method": EVIL, "rank": rank},
            answers=answers,
            losses=LOSSES,
            keep_items=False,
        )
        edit_json(run / "eval/lors.json", command=f"lors eval {EVIL}", hardware={"gpu": EVIL})
    return collect([tmp_path])
