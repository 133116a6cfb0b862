import math

import numpy as np
import pytest
from scipy import stats

from lors_cli.evaluation import paired

RNG = np.random.default_rng(7)


def test_mcnemar_by_hand() -> None:
    # 1 item only the first has right, 8 only the second: 2 (C(9, 0) + C(9, 1)) / 2^9
    first = np.array([1, *[0] * 8, 1, 1, 0])
    second = np.array([0, *[1] * 8, 1, 1, 0])
    mcnemar = paired.mcnemar(first, second)
    assert (mcnemar.only_first.tolist(), mcnemar.only_second.tolist()) == ([1], [8])
    assert mcnemar.p[0] == pytest.approx(2 * (1 + 9) / 2**9, rel=1e-12)


def test_mcnemar_is_the_binomial_test_for_every_model() -> None:
    first, second = RNG.integers(0, 2, (20, 60)), RNG.integers(0, 2, 60)
    mcnemar = paired.mcnemar(first, second)
    for one, p in zip(first, mcnemar.p, strict=True):
        only_first = sum(a > b for a, b in zip(one, second, strict=True))
        only_second = sum(a < b for a, b in zip(one, second, strict=True))
        assert p == pytest.approx(stats.binomtest(only_first, only_first + only_second).pvalue, rel=1e-10)


@pytest.mark.parametrize(("first", "second"), [([1, 0, 1], [1, 0, 1]), ([1, 0, 1, 0], [0, 1, 1, 0])])
def test_mcnemar_without_a_difference(first: list[int], second: list[int]) -> None:
    assert paired.mcnemar(np.array(first), np.array(second)).p.tolist() == [1.0]


def windows(models: int, number: int = 40) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    tokens = RNG.integers(50, 500, number).astype(float)
    hard = RNG.normal(3.0, 0.5, number)  # how hard a window is, for every model
    second = hard * tokens
    first = (hard + RNG.normal(0.02, 0.1, (models, number))) * tokens
    return first, second, tokens


def test_the_difference_is_that_of_log_perplexities() -> None:
    first, second, tokens = windows(3)
    interval = paired.token_loss_difference(first, second, tokens)
    for one, difference in zip(first, interval.difference, strict=True):
        ratio = math.exp(one.sum() / tokens.sum()) / math.exp(second.sum() / tokens.sum())
        assert difference == pytest.approx(math.log(ratio), rel=1e-9)


def test_the_interval_is_that_of_windows_drawn_again_and_again() -> None:
    first, second, tokens = windows(1)
    interval = paired.token_loss_difference(first, second, tokens)
    drawn = []
    for _ in range(20_000):
        chosen = RNG.integers(0, len(tokens), len(tokens))
        drawn.append((first[0] - second)[chosen].sum() / tokens[chosen].sum())
    spread = np.std(drawn)
    assert interval.low[0] == pytest.approx(np.percentile(drawn, 2.5), abs=0.15 * spread)
    assert interval.high[0] == pytest.approx(np.percentile(drawn, 97.5), abs=0.15 * spread)


def test_many_models_at_once_are_as_each_alone_and_always_the_same() -> None:
    first, second, tokens = windows(5)
    together = paired.token_loss_difference(first, second, tokens)
    for number, one in enumerate(first):
        alone = paired.token_loss_difference(one, second, tokens)
        assert alone.low[0] == pytest.approx(together.low[number], rel=1e-12)
        assert alone.high[0] == pytest.approx(together.high[number], rel=1e-12)


def test_models_that_are_paired_window_by_window_are_told_apart_where_their_errors_are_not() -> None:
    _, second, tokens = windows(1)
    steady = second + 0.05 * tokens
    interval = paired.token_loss_difference(steady, second, tokens)
    assert interval.low[0] == pytest.approx(0.05)  # each window says the same
    assert interval.low[0] > 0
    assert stats.sem(second / tokens) > 0.05  # which two separate errors would not see


def test_the_average_of_one_task_is_the_paired_t_statistic() -> None:
    first, second = RNG.normal(0.1, 1, 80), RNG.normal(0, 1, 80)
    z_test = paired.mean_difference([first - second])
    assert z_test.difference / z_test.stderr == pytest.approx(stats.ttest_rel(first, second).statistic, rel=1e-9)
    assert z_test.p == pytest.approx(2 * stats.norm.sf(abs(z_test.difference / z_test.stderr)), rel=1e-9)


def test_tasks_count_equally_however_many_items_they_have() -> None:
    few, many = np.array([1.0, 0.0, 1.0, 0.0]), np.zeros(1000)
    z_test = paired.mean_difference([few, many])
    assert z_test.difference == pytest.approx(0.25)
    assert z_test.stderr == pytest.approx(math.sqrt(few.var(ddof=1) / 4) / 2)
    assert paired.mean_difference([many]).p == 1.0


def test_welch() -> None:
    first, second = [0.50, 0.52, 0.55], [0.60, 0.61]
    assert paired.welch(first, second) == pytest.approx(stats.ttest_ind(first, second, equal_var=False).pvalue)
    assert paired.welch([1.0, 1.0], [1.0, 1.0]) == 1.0
    assert paired.welch([1.0, 1.0], [2.0, 2.0]) == 0.0
