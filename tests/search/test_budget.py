import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lors_cli.search import budget
from lors_cli.search.budget import steps_in_time
from lors_cli.search.study import Study
from lors_cli.search.sweep_file import Budget

TIMES = {"a": {"step": 2.0, "before": 10.0}, "b": {"step": 4.0, "before": 2.0}, "slow": {"step": 3.0, "before": 99.0}}


def test_an_arm_has_the_time_of_another_one_each_start_counted() -> None:
    budget = Budget(steps=10, time_of="a")  # 30 s
    assert {arm: steps_in_time(budget, TIMES, arm) for arm in TIMES} == {"a": 10, "b": 7, "slow": 1}


def test_seconds_are_steps_of_each_arm() -> None:
    assert {arm: steps_in_time(Budget(seconds=50), TIMES, arm) for arm in TIMES} == {"a": 20, "b": 12, "slow": 1}


def test_steps_are_timed_once(
    write_config: Callable[..., Path], pruned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = {"arms": {"a": {}, "b": {}}, "budget": {"steps": 2, "time_of": "a"}, "only": ["b"]}
    path = tmp_path / "sweep.yaml"
    path.write_text(json.dumps({"config": str(write_config()), **content}))
    study = Study(path, [f"train.input={pruned}"])
    monkeypatch.setattr(budget, "ROUNDS", 1)
    times = budget.measure(study, study.starts[0])
    assert list(times) == ["a", "b"]
    assert all(one["step"] > 0 for one in times.values())
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["times.json"]
    monkeypatch.setattr(budget, "ROUNDS", 0)  # with which a second measurement would fail
    assert budget.measure(study, study.starts[0]) == budget.read(study.starts[0]) == times
