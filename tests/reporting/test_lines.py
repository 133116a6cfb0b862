"""Runs that differ by the seed alone."""

import json
import statistics
from pathlib import Path

import pytest
from scipy import stats

from lors_cli.tools.report import collect
from tests.reporting.common import labels, number, said
from tests.reporting.synthetic import LOSSES, make_run


def seeds(tmp_path: Path) -> list[float]:
    """Three runs that differ by the seed alone; their perplexities."""
    perplexities = []
    for seed, more in enumerate((0.0, 30.0, 90.0)):
        losses = {**LOSSES, "merged": [loss + more for loss in LOSSES["merged"]]}
        run = make_run(tmp_path / f"seed{seed}", train={"seed": seed}, losses=losses)
        perplexities.append(
            json.loads((run / "eval/results.json").read_text())["models"]["merged"]["perplexity"]["value"]
        )
    return perplexities


def test_seeds_become_one_line_only_when_asked_and_say_how_many(tmp_path: Path) -> None:
    values = seeds(tmp_path)
    assert labels(collect([tmp_path]))[2:] == [f"wanda + lors r=16 seed={seed}" for seed in range(3)]
    table = collect([tmp_path], over_seeds=True)
    assert labels(table)[2:] == ["wanda + lors r=16, 3 seeds"]
    mean = number(table, "wanda + lors r=16, 3 seeds", "perplexity")
    assert mean.value == pytest.approx(statistics.mean(values))
    assert mean.error == pytest.approx(statistics.stdev(values))
    recovery = number(table, "wanda + lors r=16, 3 seeds", "recovery, perplexity")
    assert len(recovery.parts) == 3
    assert "the standard deviation over runs" in said(table)


def test_other_settings_than_the_seed_and_repeated_seeds_stay_apart(tmp_path: Path) -> None:
    seeds(tmp_path)
    make_run(tmp_path / "other", train={"seed": 7, "learning_rate": 1.0})
    make_run(tmp_path / "then_again", train={"seed": 2})
    table = collect([tmp_path], over_seeds=True)
    assert labels(table)[2:] == [
        "wanda + lors r=16 learning_rate=2e-05 [seed0], 3 seeds",
        "wanda + lors r=16 learning_rate=2e-05 [then_again]",
        "wanda + lors r=16 learning_rate=1",
    ]
    assert f"{tmp_path}/then_again repeats the seed" in said(table)


def test_lines_over_seeds_are_tested_over_seeds(tmp_path: Path) -> None:
    first, second = seeds(tmp_path / "a"), []
    for seed, more in enumerate((200.0, 260.0, 210.0)):
        losses = {**LOSSES, "merged": [loss + more for loss in LOSSES["merged"]]}
        run = make_run(tmp_path / f"b/{seed}", train={"seed": seed, "rank": 4}, losses=losses)
        second.append(json.loads((run / "eval/results.json").read_text())["models"]["merged"]["perplexity"]["value"])
    table = collect([tmp_path], over_seeds=True)
    test = next(test for test in table.tests if test.column.name == "perplexity")
    assert test.comparison.numbers["p"] == pytest.approx(stats.ttest_ind(second, first, equal_var=False).pvalue)


def test_a_pruning_of_another_seed_has_other_calibration_windows_and_is_the_same_setting(tmp_path: Path) -> None:
    for seed in range(2):
        prune = {"seed": seed, "calibration_tokens": f"drawn by {seed}"}
        make_run(tmp_path / str(seed), prune=prune, train={"seed": seed})
    table = collect([tmp_path], over_seeds=True)
    assert labels(table) == ["dense", "wanda, 2 seeds", "wanda + lors r=16, 2 seeds"]
