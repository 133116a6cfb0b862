"""Pruned weights that stand where those of their original stand, and others."""

import pytest
import torch
from torch import Tensor

from lors_cli.pruning import sparsegpt, wanda
from lors_cli.sparsity.pattern import Pattern
from lors_cli.sparsity.placement import difference

HALF, GROUPS = Pattern.parse(0.5), Pattern.parse("2:4")


def correlated(columns: int) -> Tensor:
    """Inputs that share a few causes, so that SparseGPT has much to make up for; some are nearly silent."""
    x = torch.randn(600, 24) @ torch.randn(24, columns) + 0.3 * torch.randn(600, columns)
    return x * torch.logspace(-3, 1, columns)


def swapped(size: int, count: int) -> Tensor:
    """An order in which `count` places at the start are passed on by one."""
    order = torch.arange(size)
    order[:count] = order[:count].roll(1)
    return order


@pytest.mark.parametrize("pattern", [HALF, GROUPS, Pattern.parse(0.8)], ids=str)
def test_what_pruning_changes_stays_where_it_was(pattern: Pattern) -> None:
    for _ in range(5):
        weight, x = torch.randn(96, 160), correlated(160)
        solved = sparsegpt.prune(weight, sparsegpt.prepare(x.T @ x / 300), pattern)
        assert difference(solved, weight) is None
        chosen = wanda.prune(weight, x.norm(dim=0), pattern)
        assert difference(chosen, weight) is None
        assert difference(chosen.bfloat16() + 0.1 * chosen.bfloat16(), weight) is None  # trained, and rounded


@pytest.mark.parametrize("count", [2, 7, 96])
@pytest.mark.parametrize("solve", [False, True])
def test_rows_and_columns_that_were_moved_are_found(count: int, solve: bool) -> None:
    weight, x = torch.randn(96, 160), torch.randn(600, 160)
    rows, columns = weight[swapped(96, count)], weight[:, swapped(160, count)]
    for moved, name in ((rows, "rows"), (columns, "columns")):
        factor = sparsegpt.prepare(x.T @ x)
        pruned = sparsegpt.prune(moved, factor, GROUPS) if solve else wanda.prune(moved, x.norm(dim=0), GROUPS)
        said = difference(pruned, weight)
        assert said
        assert name in said or count == 96  # where all rows were moved, no weight is where it was


def test_another_matrix_is_not_the_original() -> None:
    pruned = wanda.prune(torch.randn(64, 64), torch.ones(64), HALF)
    assert "not those of the original" in str(difference(pruned, torch.randn(64, 64)))


def test_little_that_was_kept_tells_nothing() -> None:
    weight = torch.randn(8, 8)
    assert difference(weight[torch.arange(8).roll(1)], weight) is None
    assert difference(torch.zeros(64, 64), torch.randn(64, 64)) is None
