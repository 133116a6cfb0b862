import pytest
import torch
from torch import Tensor

from lors_cli.pruning import dsnot, magnitude, wanda
from lors_cli.pruning.dsnot import repair
from lors_cli.pruning.statistics import InputMoments, Moments
from lors_cli.sparsity.mask import holds
from lors_cli.sparsity.pattern import Pattern

PATTERNS = ["0.5", "0.7", "2:4", "1:4", "3:4"]


def slow_row(
    dense: Tensor, pruned: Tensor, moments: Moments, m: int | None, cycles: int, threshold: float, power: float
) -> Tensor:
    """One row (C,) through the paper's Algorithm 1 and the published code, with lists of candidates."""
    columns = range(len(dense))
    gain, loss = (dense * moments.sum).tolist(), (pruned * moments.sum).tolist()
    score = (pruned.abs() * moments.norm).tolist()
    kept = [float(w) != 0 for w in pruned]
    free_to_grow = {j for j in columns if not kept[j] and gain[j] != 0}
    free_to_go = {j for j in columns if kept[j]}
    delta = first = sum(gain) - sum(loss)
    result = pruned.clone()
    for _ in range(cycles):
        if abs(delta) <= threshold:
            break
        sign = 1 if delta > 0 else -1
        growing = [j for j in free_to_grow if gain[j] * sign > 0]
        if not growing:
            break
        grown = max(growing, key=lambda j: sign * gain[j] / float(moments.variance[j]) ** power)
        going = [j for j in free_to_go if (j // m == grown // m if m else loss[j] * sign < 0)]
        if not going:
            if not m:
                break
            free_to_grow.discard(grown)
            continue
        removed = min(going, key=lambda j: score[j])
        after = delta + loss[removed] - gain[grown]
        if m and after * first <= 0:
            break
        free_to_grow.discard(grown)
        free_to_go.discard(removed)
        result[grown], result[removed], delta = dense[grown], 0, after
    return result if abs(delta) <= abs(first) else pruned


def inputs(samples: int, length: int, columns: int) -> Tensor:
    x = torch.randn(samples, length, columns, dtype=torch.float64) * torch.rand(columns, dtype=torch.float64)
    return x + 0.2 * torch.randn(columns, dtype=torch.float64)


def moments_of(x: Tensor) -> Moments:
    """From the definitions, (samples, length, C)."""
    return Moments(
        norm=x.flatten(0, 1).norm(dim=0), sum=x.sum(dim=1).mean(dim=0), variance=x.var(dim=1, correction=0).mean(dim=0)
    )


def delta(dense: Tensor, pruned: Tensor, moments: Moments) -> Tensor:
    return ((dense - pruned) * moments.sum).sum(dim=1).abs()


@pytest.mark.parametrize("text", PATTERNS)
@pytest.mark.parametrize(("cycles", "threshold", "power"), [(50, 0.1, 1.0), (3, 0.0, 0.5), (50, 5.0, 0.0)])
def test_equals_the_published_algorithm_row_by_row(text: str, cycles: int, threshold: float, power: float) -> None:
    pattern = Pattern.parse(text)
    dense, moments = torch.randn(40, 60, dtype=torch.float64), moments_of(inputs(4, 30, 60))
    pruned = wanda.prune(dense, moments.norm, pattern)
    repaired = repair(
        dense, pruned, moments, pattern, repair_cycles=cycles, update_threshold=threshold, var_power=power
    )
    expected = [
        slow_row(d, p, moments, pattern.m, cycles, threshold, power) for d, p in zip(dense, pruned, strict=True)
    ]
    assert torch.equal(repaired, torch.stack(expected))
    assert not torch.equal(repaired, pruned)


@pytest.mark.parametrize("text", PATTERNS)
@pytest.mark.parametrize("method", ["magnitude", "wanda", "updating"])
def test_counts_stay_and_the_expected_error_falls(text: str, method: str) -> None:
    pattern = Pattern.parse(text)
    x = inputs(4, 100, 64)
    dense, moments = torch.randn(32, 64, dtype=torch.float64), moments_of(x)
    if method == "magnitude":
        pruned = magnitude.prune(dense, None, pattern)
    else:
        pruned = wanda.prune(dense, moments.norm, pattern)
    if method == "updating":  # as SparseGPT does: kept weights differ from the dense ones
        pruned *= 1 + 0.2 * torch.randn(32, 64, dtype=torch.float64)
    repaired = repair(dense, pruned, moments, pattern)
    assert torch.equal(repaired.count_nonzero(dim=1), pruned.count_nonzero(dim=1))
    if pattern.m:
        assert holds(repaired, pattern)
    before, after = delta(dense, pruned, moments), delta(dense, repaired, moments)
    assert (after <= before * (1 + 1e-9) + 1e-12).all()
    assert after.mean() < 0.8 * before.mean()
    both = (repaired != 0) & (pruned != 0)
    assert torch.equal(repaired[both], pruned[both])
    regrown = (repaired != 0) & (pruned == 0)
    assert torch.equal(repaired[regrown], dense[regrown])


def test_a_larger_threshold_or_no_cycle_changes_nothing() -> None:
    dense, moments, pattern = torch.randn(8, 16), Moments(*torch.rand(3, 16)), Pattern(0.5)
    pruned = wanda.prune(dense, moments.norm, pattern)
    assert torch.equal(repair(dense, pruned, moments, pattern, repair_cycles=0), pruned)
    assert torch.equal(repair(dense, pruned, moments, pattern, update_threshold=1e9), pruned)


@pytest.mark.parametrize("text", PATTERNS)
def test_dead_and_constant_inputs_and_an_empty_row(text: str) -> None:
    """A dead input has sum and variance 0, and is not grown; a constant one has variance 0, and is grown first."""
    pattern = Pattern.parse(text)
    x = inputs(2, 50, 24)
    x[:, :, [3, 8]], x[:, :, 13] = 0, 0.5
    dense, moments = torch.randn(12, 24, dtype=torch.float64), moments_of(x)
    moments.variance[13] = 0  # free of rounding
    dense[4] = 0
    pruned = magnitude.prune(dense, None, pattern)
    repaired = repair(dense, pruned, moments, pattern)
    assert repaired.isfinite().all()
    assert torch.equal(repaired.count_nonzero(dim=1), pruned.count_nonzero(dim=1))
    assert ((repaired != 0) <= (pruned != 0))[:, [3, 8]].all()
    assert (delta(dense, repaired, moments) <= delta(dense, pruned, moments) + 1e-12).all()
    assert repaired[4].count_nonzero() == 0


@pytest.mark.parametrize("text", PATTERNS)
def test_ties_and_more_cycles_than_candidates_keep_the_count(text: str) -> None:
    pattern = Pattern.parse(text)
    dense, moments = torch.tensor([1.0, -1.0]).repeat(5, 12)[:, torch.randperm(24)], Moments(*torch.ones(3, 24))
    pruned = wanda.prune(dense, moments.norm, pattern)
    repaired = repair(dense, pruned, moments, pattern, repair_cycles=1000, update_threshold=0)
    assert torch.equal(repaired.count_nonzero(dim=1), pruned.count_nonzero(dim=1))
    assert not pattern.m or holds(repaired, pattern)


def test_bfloat16_weights_keep_their_dtype() -> None:
    statistic, pattern = InputMoments(), Pattern.parse("2:4")
    statistic.add(inputs(2, 50, 32).bfloat16())
    dense = torch.randn(8, 32).bfloat16()
    pruned = wanda.prune(dense, statistic.value().norm, pattern)
    repaired = repair(dense, pruned, statistic.value(), pattern)
    assert repaired.dtype == torch.bfloat16
    assert holds(repaired, pattern)
    assert not torch.equal(repaired, pruned)


def test_chunks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    dense, moments, pattern = torch.randn(11, 16), Moments(*torch.rand(3, 16)), Pattern(0.5)
    pruned = wanda.prune(dense, moments.norm, pattern)
    whole = repair(dense, pruned, moments, pattern)
    monkeypatch.setattr(dsnot, "CHUNK", 40)
    assert torch.equal(repair(dense, pruned, moments, pattern), whole)


def test_moments_do_not_depend_on_the_calls_and_add_up() -> None:
    x = inputs(6, 20, 10)
    whole, parts, other = InputMoments(), InputMoments(), InputMoments()
    whole.add(x)
    for part in x[:2]:
        parts.add(part)
    parts.add(x[2:3])
    other.add(x[3:])
    assert parts.tokens == 60
    for name in vars(parts):
        setattr(parts, name, getattr(parts, name) + getattr(other, name))
    assert parts.tokens == whole.tokens == 120
    for statistic in (whole, parts):
        for got, expected in zip(statistic.value(), moments_of(x), strict=True):
            assert got.dtype == torch.float32
            torch.testing.assert_close(got, expected.float())
