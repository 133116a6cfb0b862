"""Paired tests on the files of two evaluations, against scipy by hand."""

import gzip
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from lors_cli.evaluation import items
from lors_cli.reporting import compare, runs
from lors_cli.reporting.compare import Comparison
from lors_cli.reporting.runs import Manifests, Run
from tests.reporting.synthetic import edit_json, make_run, resign

FIRST = [1, 1, 1, 0, 1, 1, 1, 1, 1, 0, 1, 1]
SECOND = [0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0]


def opened(directory: Path) -> Run:
    run = runs.read(directory, Manifests())
    assert isinstance(run, Run), run
    return run


def two(tmp_path: Path, first: Any = FIRST, second: Any = SECOND, **options: Any) -> tuple[Run, Run]:
    made = [
        make_run(tmp_path / name, answers={"merged": answers}, models=["merged"], **options)
        for name, answers in (("one", first), ("two", second))
    ]
    return opened(made[0]), opened(made[1])


def compared(one: Run, other: Run) -> dict[str, Comparison]:
    return compare.evaluations(one, "merged", other, "merged")


def lines(run: Run, name: str) -> list[dict[str, Any]]:
    with gzip.open(run.directory / f"eval/items/merged/{name}.jsonl.gz", "rt") as file:
        return [json.loads(line) for line in file]


def test_accuracies_of_two_files_as_scipy_has_it(tmp_path: Path) -> None:
    one, other = two(tmp_path)
    pairs = [(a["acc"], b["acc"]) for a, b in zip(lines(one, "arc_easy"), lines(other, "arc_easy"), strict=True)]
    only_one, only_other = pairs.count((1.0, 0.0)), pairs.count((0.0, 1.0))
    comparison = compared(one, other)["arc_easy"]
    assert comparison.test == "McNemar"
    assert (comparison.numbers["only_this"], comparison.numbers["only_best"]) == (only_one, only_other) == (9, 1)
    assert comparison.numbers["p"] == pytest.approx(stats.binomtest(only_one, only_one + only_other).pvalue)
    assert comparison.different is True
    assert compared(one, one)["arc_easy"].different is False


def test_perplexities_of_two_files_as_scipy_has_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    losses = [rng.normal(4000, 300, 30) for _ in range(2)]
    losses[1] = losses[0] + rng.normal(40, 60, 30)
    one = opened(make_run(tmp_path / "one", losses={"merged": losses[0].tolist()}, models=["merged"]))
    other = opened(make_run(tmp_path / "two", losses={"merged": losses[1].tolist()}, models=["merged"]))
    comparison = compared(one, other)["perplexity"]
    a, b, t = (
        np.array([line[key] for line in lines(run, "perplexity")], dtype=float)
        for run, key in ((one, "loss"), (other, "loss"), (one, "tokens"))
    )
    by_hand = stats.bootstrap(
        (a, b, t),
        lambda a, b, t, axis: (a - b).sum(axis) / t.sum(axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=2000,
        random_state=np.random.default_rng(0),
    ).confidence_interval
    assert comparison.numbers["low"] == pytest.approx(by_hand.low)
    assert comparison.numbers["high"] == pytest.approx(by_hand.high)
    values = [run.results["models"]["merged"]["perplexity"]["value"] for run in (one, other)]
    assert comparison.numbers["difference"] == pytest.approx(math.log(values[0] / values[1]))
    assert comparison.different == (by_hand.low > 0 or by_hand.high < 0)


def test_items_are_read_alike_however_their_lines_are_written(tmp_path: Path) -> None:
    one, other = two(tmp_path, FIRST, FIRST)
    rows = lines(other, "arc_easy")
    moved = [{"acc": row.pop("acc") == 1.0, "more": '"acc": 7', **row} for row in rows]
    items.write(other.directory / "eval/items/merged/arc_easy.jsonl.gz", moved)
    assert compared(one, other)["arc_easy"].numbers == {"p": 1.0, "only_this": 0, "only_best": 0, "items": len(FIRST)}


def test_other_documents_or_prompts_are_not_compared(tmp_path: Path) -> None:
    one, other = two(tmp_path)
    changed = lines(other, "arc_easy")
    changed[3]["prompt"] = "another"
    items.write(other.directory / "eval/items/merged/arc_easy.jsonl.gz", changed)
    comparison = compared(one, other)["arc_easy"]
    assert (comparison.different, comparison.reason) == (None, compare.OTHER_ITEMS)


def test_items_that_do_not_add_up_to_the_result_are_not_used(tmp_path: Path) -> None:
    one, other = two(tmp_path)
    for name, key, value in (("arc_easy", "acc", 1.0), ("perplexity", "loss", 9.0)):
        changed = lines(other, name)
        changed[0][key] = value
        items.write(other.directory / f"eval/items/merged/{name}.jsonl.gz", changed)
        comparison = compared(one, other)[name]
        assert comparison.different is None
        assert "do not add up" in comparison.reason


@pytest.mark.parametrize(
    "content", [None, b"", b"no gzip", gzip.compress(b"{}\n", mtime=0)[:-9], gzip.compress(b"{}\n", mtime=0)]
)
def test_items_that_are_gone_or_damaged_are_named(tmp_path: Path, content: bytes | None) -> None:
    one, other = two(tmp_path)
    path = other.directory / "eval/items/merged/arc_easy.jsonl.gz"
    path.unlink() if content is None else path.write_bytes(content)
    comparison = compared(one, other)["arc_easy"]
    assert comparison.different is None
    assert "items" in comparison.reason


def test_results_without_items_are_shown_and_not_tested(tmp_path: Path) -> None:
    one, other = two(tmp_path, keep_items=False)
    assert compared(one, other)["arc_easy"].reason == "no items were kept"


def test_a_group_is_compared_over_the_items_of_its_tasks(tmp_path: Path) -> None:
    tasks = {"part_a": [1, 1, 0, 1], "part_b": [1, 1, 1, 0, 1, 1]}
    worse = {"part_a": [0, 0, 0, 0], "part_b": [0, 1, 1, 0, 0, 0]}
    both = []
    for name, answers in (("one", tasks), ("two", worse)):
        directory = make_run(tmp_path / name, answers={"merged": answers}, models=["merged"])
        every = [answer for part in answers.values() for answer in part]
        results = directory / "eval/results.json"
        content = json.loads(results.read_text())
        entries = content["models"]["merged"]["tasks"]
        whole = {"acc": sum(every) / len(every), "n": len(every), "metric": "acc", "shots": 5, "version": 2.0}
        content["models"]["merged"]["tasks"] = {
            "whole": whole,
            "part_a": {**entries["part_a"], "group": "whole"},
            "part_b": {**entries["part_b"], "group": "whole"},
        }
        results.write_text(json.dumps(content))
        resign(directory / "eval")
        both.append(opened(directory))
    comparison = compared(*both)
    assert "part_a" not in comparison
    assert (comparison["whole"].numbers["only_this"], comparison["whole"].numbers["only_best"]) == (6, 0)


def test_shares_between_right_and_wrong_are_compared_by_their_means(tmp_path: Path) -> None:
    first, second = [0.1, 0.5, 0.9, 1.0, 0.4], [0.1, 0.4, 0.5, 0.2, 0.0]
    one, other = two(tmp_path, first, second)
    comparison = compared(one, other)["arc_easy"]
    assert comparison.test == "z-test"
    expected = stats.ttest_rel(first, second).statistic
    assert comparison.numbers["difference"] / comparison.numbers["stderr"] == pytest.approx(expected)


def test_different_shots_are_not_compared_at_all(tmp_path: Path) -> None:
    one, other = two(tmp_path)
    edit_json(other.directory / "eval/results.json", models__merged__tasks__arc_easy__shots=5)
    resign(other.directory / "eval")
    assert set(compared(one, opened(other.directory))) == {"perplexity"}
