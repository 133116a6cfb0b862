"""Differences between runs, seed by seed."""

import math
import statistics
from typing import Any

import pytest

from lors_cli.search import paired
from lors_cli.search.outcome import Outcome


def runs(*values: float | None) -> list[Outcome]:
    return [{"models": {"merged": {} if one is None else {"perplexity": {"value": one}}}} for one in values]


def test_a_difference_is_taken_seed_by_seed() -> None:
    one, other = [31.0, 33.5, 32.0], [32.0, 33.0, 34.0]
    minus = paired.difference(runs(*one), runs(*other), paired.of_model("merged"))
    by_hand = [a - b for a, b in zip(one, other, strict=True)]
    assert minus
    assert minus["by_seed"] == by_hand
    assert minus["mean"] == pytest.approx(sum(by_hand) / 3)
    variance = sum((value - sum(by_hand) / 3) ** 2 for value in by_hand) / 2
    assert minus["standard_error"] == pytest.approx(math.sqrt(variance / 3))
    # the seeds differ by more than the arms: paired, the error is far below that of two separate means
    apart = math.sqrt((statistics.variance(one) + statistics.variance(other)) / 3)
    assert minus["standard_error"] < apart
    assert paired.shown(minus) == "-0.83 ± 0.73"


def test_a_difference_of_one_seed_has_no_error() -> None:
    assert paired.shown(paired.difference(runs(31.0), runs(30.5), paired.of_model("merged"))) == "+0.50"


@pytest.mark.parametrize("missing", [runs(31.0, None), [*runs(31.0), {"diverged": "NaN"}]])
def test_there_is_no_difference_where_a_seed_has_no_number(missing: list[Outcome]) -> None:
    for pair in ((missing, runs(30.0, 30.0)), (runs(30.0, 30.0), missing)):
        minus = paired.difference(*pair, paired.of_model("merged"))
        assert minus is None
        assert paired.shown(minus) == "-"


def test_the_number_of_a_further_evaluation_is_that_of_the_merged_model() -> None:
    run: dict[str, Any] = {"models": {}, "evaluations": {"b": {"merged": {"perplexity": {"value": 7.0}}}}}
    assert paired.of_evaluation("b")(run) == 7.0
    assert paired.of_evaluation("c")(run) is None
    assert paired.of_evaluation("b")({"diverged": "NaN"}) == math.inf
