import pytest
import torch
from torch import Tensor

from lors_cli.errors import LorsError
from lors_cli.pruning.owl import share, spread
from lors_cli.pruning.statistics import InputNorm

SHAPES = {"q": (8, 8), "k": (4, 8), "up": (12, 8), "down": (8, 12)}
SHARES = [[0.1, 0.02, 0.3, 0.05], [0.0, 0.0, 0.0, 1e-6], [0.4, 0.3, 0.2, 0.1], [0.2, 0.2, 0.2, 0.1]]


def make(dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor], list[list[list[float]]]]:
    """Weights, what was gathered of their inputs, and these inputs as numbers; heavy-tailed, so that some stick out."""
    weights, norms, tokens = [], [], []
    for shape in SHAPES.values():
        weights.append(torch.randn(shape, dtype=dtype))
        x = torch.randn(3, 10, shape[1], dtype=dtype) * torch.randn(shape[1]).exp().to(dtype)
        norm = InputNorm()
        for window in x.split(1):
            norm.add(window)
        norms.append(norm.value())
        tokens.append(x.flatten(0, 1).tolist())
    return weights, norms, tokens


@pytest.mark.parametrize("times", [0.5, 1, 2, 3, 5, 7, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outliers_are_counted_over_all_linears_of_the_block(times: float, dtype: torch.dtype) -> None:
    weights, norms, tokens = make(dtype)
    before = [tensor.clone() for tensor in (*weights, *norms)]
    scores = []
    for weight, seen in zip(weights, tokens, strict=True):
        for row in weight.tolist():
            for column, one in enumerate(row):
                norm = sum(token[column] ** 2 for token in seen) ** 0.5
                scores.append(abs(one) * norm)
    mean = sum(scores) / len(scores)
    expected = sum(score > times * mean for score in scores) / len(scores)
    assert share(weights, norms, profile_outlier=times) == expected
    assert (expected > 0) == (times < 100)
    assert all(torch.equal(now, old) for now, old in zip((*weights, *norms), before, strict=True))


def published(shares: list[float], sparsity: float, lamda: float) -> list[float]:
    """The lines of the published code (luuyin/OWL, lib/prune_all.py), where a ratio is what is kept."""
    ratio = torch.tensor(shares, dtype=torch.float64)
    ratio = (ratio - ratio.min()) * (1 / (ratio.max() - ratio.min()) * lamda * 2)
    ratio = ratio - ratio.mean() + (1 - sparsity)
    return [float(1 - kept) for kept in ratio]


@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize(("sparsity", "width"), [(0.7, 0.08), (0.5, 0.2), (0.3, 0.01)])
def test_equal_blocks_get_the_published_levels(shares: list[float], sparsity: float, width: float) -> None:
    levels = spread(shares, [7] * 4, sparsity, profile_range=width)
    assert levels == pytest.approx(published(shares, sparsity, width), abs=1e-12)
    assert max(levels) - min(levels) == pytest.approx(2 * width)


@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("sizes", [[1, 1, 1, 1], [5, 1, 0, 3]])
def test_the_mean_over_the_weights_is_the_asked_one(shares: list[float], sizes: list[int]) -> None:
    levels = spread(shares, sizes, 0.6, profile_range=0.15)
    mean = sum(level * size for level, size in zip(levels, sizes, strict=True)) / sum(sizes)
    assert mean == pytest.approx(0.6, abs=1e-9)


def test_equal_shares_give_equal_levels() -> None:
    assert spread([0.1] * 4, [1, 2, 3, 4], 0.5) == [0.5] * 4


@pytest.mark.parametrize(("shares", "block"), [([1.0, 1, 1, 0], 3), ([1.0, 0, 0, 0], 0)])
def test_a_mean_that_cannot_be_reached_is_an_error(shares: list[float], block: int) -> None:
    assert not 0 < published(shares, 0.5, 0.49)[block] < 1
    with pytest.raises(LorsError, match=rf"cannot reach a mean sparsity of 0\.5: block {block} would get"):
        spread(shares, [1] * 4, 0.5, profile_range=0.49)


def test_a_block_without_weights_cannot_make_it_unreachable() -> None:
    assert spread([1.0, 1, 1, 0], [1, 1, 1, 0], 0.5, profile_range=0.49)[:3] == [0.5] * 3
