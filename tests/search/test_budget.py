import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lors_cli.artifacts import publish
from lors_cli.config.schema import Config
from lors_cli.run import manifest
from lors_cli.search import budget, runs
from lors_cli.search.budget import MAKING, steps_in_time
from lors_cli.search.study import Study
from lors_cli.search.sweep_file import Budget

TIMES = {"a": {"step": 2.0, "before": 10.0}, "b": {"step": 4.0, "before": 2.0}, "slow": {"step": 3.0, "before": 99.0}}


def test_an_arm_has_the_time_of_another_one_each_start_counted() -> None:
    budget = Budget(steps=10, time_of="a")  # 30 s
    assert {arm: steps_in_time(budget, TIMES, arm) for arm in TIMES} == {"a": 10, "b": 7, "slow": 1}


def test_seconds_are_steps_of_each_arm() -> None:
    assert {arm: steps_in_time(Budget(seconds=50), TIMES, arm) for arm in TIMES} == {"a": 20, "b": 12, "slow": 1}


def test_what_a_start_takes_longer_than_another_is_taken_from_its_training() -> None:
    budget = Budget(steps=10, time_of="a")  # 30 s on the other start
    plain = {**TIMES, MAKING: {"step": 0.0, "before": 60.0}}
    repaired = {arm: {"step": one["step"], "before": one["before"]} for arm, one in plain.items()}
    repaired[MAKING] = {"step": 0.0, "before": 72.0}
    assert {arm: steps_in_time(budget, repaired, arm, plain) for arm in TIMES} == {"a": 4, "b": 4, "slow": 1}
    assert steps_in_time(Budget(seconds=50), repaired, "a", plain) == 14
    assert steps_in_time(budget, repaired, "a") == 10  # where nothing else is the measure


@pytest.mark.parametrize("interrupted", [False, True])
def test_the_making_of_a_start_is_timed_as_a_whole(
    write_config: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupted: bool
) -> None:
    starts = {"x": {}, "y": {"set": {"prune.update": "least_squares"}, "time_of": "x"}}
    content = {"arms": {"a": {}}, "budget": {"steps": 2, "time_of": "a"}, "starts": starts, "only": ["y"]}
    path = tmp_path / "sweep.yaml"
    path.write_text(json.dumps({"config": str(write_config(eval=...)), **content}))
    study = Study(path, [])
    assert ([start.name for start in study.starts], [row.name for row in study.rows]) == (["x", "y"], ["y/a"])
    start = study.starts[1]
    assert study.measure_of(start) == study.starts[0]
    monkeypatch.setattr(budget, "ROUNDS", 1)
    performed: list[str] = []
    perform = runs.perform

    def recorded(config: Config, stages: list[str]) -> None:
        performed.extend(stages)
        perform(config, stages)

    monkeypatch.setattr(runs, "perform", recorded)
    if interrupted:
        publish.partial_directory(start.directory / "pruned").mkdir(parents=True)
    new = budget.is_new(start)
    assert new != interrupted
    runs.perform(start.config, start.stages)
    times = budget.measure(study, start, was_new=new)
    assert performed == ["prune", "train", *(["prune"] if interrupted else [])]
    made = manifest.read(start.directory / "pruned")
    assert made
    assert times[MAKING]["before"] == made.seconds or interrupted
    assert times[MAKING]["before"] > 0
    assert not (start.directory / "timing").exists()


def test_steps_are_timed_once(
    write_config: Callable[..., Path], pruned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = {"arms": {"a": {}, "b": {}}, "budget": {"steps": 2, "time_of": "a"}, "only": ["b"]}
    path = tmp_path / "sweep.yaml"
    path.write_text(json.dumps({"config": str(write_config()), **content}))
    study = Study(path, [f"train.input={pruned}"])
    monkeypatch.setattr(budget, "ROUNDS", 1)
    times = budget.measure(study, study.starts[0], was_new=True)
    assert list(times) == ["a", "b"]
    assert all(one["step"] > 0 for one in times.values())
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["times.json"]
    monkeypatch.setattr(budget, "ROUNDS", 0)  # with which a second measurement would fail
    assert budget.measure(study, study.starts[0], was_new=False) == budget.read(study.starts[0]) == times
