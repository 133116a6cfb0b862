from itertools import permutations

import pytest
import torch
from torch import Tensor

from lors_cli.errors import LorsError
from lors_cli.pruning import permutation as module
from lors_cli.pruning.permutation import permutation, retained
from lors_cli.sparsity.mask import keep_largest
from lors_cli.sparsity.pattern import Pattern

PATTERNS = ["2:4", "1:4", "3:4", "1:2", "2:3"]


def kept(score: Tensor, pattern: Pattern) -> float:
    return float(score[keep_largest(score, pattern, per_row=True)].sum(dtype=torch.float64))


def scores(rows: int, columns: int) -> Tensor:
    """Columns of very different size, the large ones next to each other: what a permutation is good for."""
    return torch.rand(rows, columns, dtype=torch.float64) * torch.linspace(0.1, 3, columns)


def slow(score: Tensor, pattern: Pattern) -> list[Tensor]:
    """The orders after the heuristic and after each of the M assignments, the assignments by trying all."""
    assert pattern.m
    m, groups = pattern.m, score.shape[1] // pattern.m
    order = sorted(range(score.shape[1]), key=lambda column: float(score[:, column].sum()))
    index = torch.zeros(score.shape[1], dtype=torch.long)
    for position in range(m):
        for group in range(groups):
            turn = group if position % 2 == 0 else groups - 1 - group
            index[group * m + position] = order[position * groups + turn]
    orders = [index]
    for position in range(m):
        tried = []
        for given in permutations(range(groups)):
            new = index.clone()
            for group, source in enumerate(given):
                new[group * m + position] = index[source * m + position]
            tried.append(new)
        index = max(tried, key=lambda new: kept(score[:, new], pattern))
        orders.append(index)
    return orders


@pytest.mark.parametrize("text", PATTERNS)
@pytest.mark.parametrize("seed", range(3))
def test_equals_trying_all_assignments(text: str, seed: int) -> None:
    torch.manual_seed(seed)
    pattern = Pattern.parse(text)
    assert pattern.m
    score = scores(7, 4 * pattern.m)
    orders = [kept(score[:, index], pattern) for index in slow(score, pattern)]
    assert orders == sorted(orders)
    index = permutation(score, pattern)
    assert kept(score[:, index], pattern) == pytest.approx(orders[-1], rel=1e-12)


@pytest.mark.parametrize("text", PATTERNS)
def test_keeps_more_than_the_heuristic_and_the_identity(text: str) -> None:
    pattern = Pattern.parse(text)
    assert pattern.m
    score = scores(33, 24 * pattern.m).float()
    index = permutation(score, pattern)
    assert index.dtype == torch.long
    assert torch.equal(index.sort().values, torch.arange(24 * pattern.m))
    assert torch.equal(index, permutation(score.clone(), pattern))
    heuristic = module._allocate(score, pattern.m)
    assert kept(score[:, index], pattern) > kept(score[:, heuristic], pattern) > kept(score, pattern)
    assert retained(score, pattern, index) == pytest.approx(kept(score[:, index], pattern), rel=1e-12)


def test_finds_the_best_of_all_orders_in_a_tiny_case() -> None:
    score = torch.tensor([[9.0, 8, 7, 6, 1, 1, 1, 1]])
    index = permutation(score, Pattern.parse("2:4"))
    assert kept(score[:, index], Pattern.parse("2:4")) == 30


def test_an_order_that_cannot_be_bettered_stays() -> None:
    pattern = Pattern.parse("2:4")
    for score in (torch.ones(3, 16), torch.zeros(3, 16), torch.tensor([5.0, 5, 0, 0]).repeat(3, 4), torch.rand(3, 4)):
        assert torch.equal(permutation(score, pattern), torch.arange(score.shape[1]))


@pytest.mark.parametrize("seed", range(20))
def test_is_never_worse_than_the_identity(seed: int) -> None:
    torch.manual_seed(seed)
    score, pattern = torch.rand(2, 8), Pattern.parse("2:4")
    assert kept(score[:, permutation(score, pattern)], pattern) >= kept(score, pattern)


def test_chunks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    score, pattern = scores(37, 40), Pattern.parse("2:4")
    whole = retained(score, pattern, permutation(score, pattern))
    monkeypatch.setattr(module, "CHUNK", 100)
    assert retained(score, pattern, permutation(score, pattern)) == pytest.approx(whole, rel=1e-12)


def test_what_does_not_fit_is_an_error() -> None:
    with pytest.raises(LorsError, match=r"not for 0\.5"):
        permutation(torch.rand(2, 8), Pattern(0.5))
    with pytest.raises(LorsError, match="not a multiple of 4"):
        permutation(torch.rand(2, 10), Pattern.parse("2:4"))
