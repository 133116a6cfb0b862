"""A short part of what ``scripts/faults.sh`` does: kills and faults of a few kinds of runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import contents, shim, works

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.skipif(shim.missing() is not None, reason=str(shim.missing()))
def test_killed_and_disturbed_runs_leave_nothing_and_go_on(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.faults", "--json", str(tmp_path / "found")]
    amounts = ["--kills", "9", "--faults", "6", "--stages", "prune-wanda", "eval-perplexity"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([*command, *amounts], cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    summary = json.loads((tmp_path / "found").read_text())
    assert summary["findings"] == [], done.stderr
    assert done.returncode == 0, done.stderr
    for way, total in (("kills", 9), ("faults", 6)):
        assert summary[way] >= total
        assert summary[f"{way} by kind of run"].keys() == {"prune-wanda", "eval-perplexity"}
    assert summary["runs killed twice"] >= 2


def test_what_is_incomplete_left_over_or_other_is_found() -> None:
    old = {"run/pruned/": b"", "run/pruned/lors.json": b"old", "run/pruned/a": b"1"}
    new = {"run/pruned/": b"", "run/pruned/lors.json": b"new", "run/pruned/a": b"2"}
    mixed = {**old, "run/pruned/a": b"2"}
    work = {**new, "run/pruned/work/": b""}
    assert contents.incomplete(old, old, new) == contents.incomplete(new, old, new) == []
    assert contents.incomplete({**new, "run/.pruned.partial/a": b"x"}, old, new) == []
    for wrong in (mixed, work, {name: new[name] for name in ("run/pruned/", "run/pruned/lors.json")}):
        assert contents.incomplete(wrong, old, new) == ["run/pruned/ is neither the old one nor the new one"]
    assert contents.differences(work, new) == ["run/pruned/work/ is left over"]
    assert contents.differences(mixed, new) == ["run/pruned/lors.json differs"]
    assert contents.differences({}, {"a": b""}) == ["a is missing"]


def test_each_kind_of_run_starts_from_another() -> None:
    names = [work.name for work in works.WORKS]
    assert len({*names}) == len(names)
    for work in works.WORKS:
        assert work.after in [works.START, *names[: names.index(work.name)]]
    recover = works.needed(works.named(["recover"]))
    assert [work.name for work in recover] == ["prune-structured", "train-small", "recover"]
    with pytest.raises(ValueError, match="melt"):
        works.named(["melt"])
