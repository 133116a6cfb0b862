"""Do two models differ on the same items? Paired tests, which ask more of the data than two separate standard errors.

Several models are compared with one in a call: first (k, n) are their values on n items, second (n,) the one's.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

LEVEL = 0.05  # the level of significance; 1 - LEVEL is the confidence of the intervals
RESAMPLES = 2000
SEED = 0
AT_ONCE = 2**22  # numbers of the resampled arrays in memory

Array = NDArray[Any]


@dataclass(frozen=True)
class McNemar:
    """Items that only the first model has right, those that only the second has, and the p-value; each (k,)."""

    only_first: Array
    only_second: Array
    p: Array


@dataclass(frozen=True)
class Interval:
    """A difference and the ends of its confidence interval; each (k,)."""

    difference: Array
    low: Array
    high: Array


@dataclass(frozen=True)
class ZTest:
    """A difference, its standard error and the p-value."""

    difference: float
    stderr: float
    p: float


def mcnemar(first: Array, second: Array) -> McNemar:
    """McNemar's exact test (1947) of equal accuracy on the same items.

    Items that both have right or both have wrong say nothing. Of the b + c others, with equal accuracies each is as
    likely to be right in the first as in the second model: b ~ Binomial(b + c, 1/2), and two-sided

        p = min(1, 2 P[Binomial(b + c, 1/2) <= min(b, c)])

    which is what `scipy.stats.binomtest(b, b + c)` gives, here for all k at once. Without such an item p is 1.

    Args:
        first: (k, n), right or wrong.
        second: (n,), of the same items.

    Returns:
        b, c and p, each (k,).

    """
    first, second = np.atleast_2d(first).astype(bool), np.asarray(second).astype(bool)
    b, c = (first & ~second).sum(1), (~first & second).sum(1)
    return McNemar(b, c, np.minimum(1.0, 2 * stats.binom.cdf(np.minimum(b, c), b + c, 0.5)))


def token_loss_difference(first: Array, second: Array, tokens: Array) -> Interval:
    """The difference of the mean loss per token, which is that of log perplexities, by a paired bootstrap over windows.

    With summed losses a_i, b_i and t_i predicted tokens of window i the difference is

        d = sum_i (a_i - b_i) / sum_i t_i

    and its interval has the percentiles of d over resamples of the windows, each drawn with its a, b and t together.
    The draws are the same for every model and in every call.

    Args:
        first: (k, n), summed losses in nats.
        second: (n,), on the same windows.
        tokens: (n,), predicted ones; n is at least 2.

    Returns:
        d and its interval of confidence 1 - LEVEL, each (k,).

    """
    differences = np.atleast_2d(first) - np.asarray(second)
    counts = np.broadcast_to(np.asarray(tokens, dtype=float), differences.shape)

    def mean(a: Array, t: Array, axis: int = -1) -> Array:
        return np.asarray(a.sum(axis) / t.sum(axis))

    interval = stats.bootstrap(
        (differences, counts),
        mean,
        paired=True,
        vectorized=True,
        axis=-1,
        n_resamples=RESAMPLES,
        batch=max(AT_ONCE // differences.size, 1),
        confidence_level=1 - LEVEL,
        method="percentile",  # BCa is undefined where all windows differ by the same
        random_state=np.random.default_rng(SEED),
    ).confidence_interval
    return Interval(mean(differences, counts), interval.low, interval.high)


def mean_difference(differences: list[Array]) -> ZTest:
    """The difference of an average over tasks, by a paired z-test.

    With the items' differences d_ti of task t, of which there are n_t, and T tasks

        D = 1/T sum_t mean_i d_ti        s^2 = 1/T^2 sum_t var_i(d_ti) / n_t        p = 2 P[N(0, 1) > abs(D) / s]

    Tasks count equally, as in the average, and their items are drawn independently.

    Args:
        differences: for each task (n_t,), with n_t of at least 2.

    Returns:
        D, s and p; where no item differs p is 1.

    """
    number = len(differences)
    difference = sum(float(d.mean()) for d in differences) / number
    stderr = float(np.sqrt(sum(float(d.var(ddof=1)) / len(d) for d in differences))) / number
    if not stderr:
        return ZTest(difference, stderr, 0.0 if difference else 1.0)
    return ZTest(difference, stderr, float(2 * stats.norm.sf(abs(difference) / stderr)))


def welch(first: list[float], second: list[float]) -> float:
    """The p-value of Welch's t-test for equal means of two samples, such as results over seeds; each of at least 2."""
    if np.ptp(first) == np.ptp(second) == 0:
        return 1.0 if first[0] == second[0] else 0.0
    return float(stats.ttest_ind(first, second, equal_var=False).pvalue)
