"""SparseGPT: remove weights and let the remaining ones of the row make up for them.

Frantar and Alistarh 2023, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", arXiv
2301.00774, Algorithm 1. With H = 2 X^T X + lambda I and U the upper Cholesky factor of H^-1, columns are handled from
left to right: a removed weight w_j leaves the error e = w_j / U_jj, and the columns k > j of its row get
``w_k -= e * U_jk``. The weights to remove are those with the smallest w_j^2 / U_jj^2, chosen among the 128 columns of
a block (unstructured) or the M columns of a group (N:M) once the block or group is reached.

The solve is chaotic: a rounding in one block flips near-ties in the next ones, and after a few blocks a tenth of the
mask differs, at a perplexity some per cent away. So the order of operations is that of the published code throughout,
and float32 runs agree with it where the inputs agree.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lors_cli.quantization import gptq, stored
from lors_cli.quantization.grid import Grid
from lors_cli.quantization.stored import Quantized
from lors_cli.sparsity.hessian import Factor, prepare
from lors_cli.sparsity.pattern import Pattern

__all__ = ["prepare", "prune", "prune_and_round", "prune_block"]

ROWS = 4096  # handled together: on a CPU more would not stay in its cache


def prune(weight: Tensor, statistic: Factor, pattern: Pattern, *, block_size: int = 128) -> Tensor:
    """Prune and update `weight` (R, C).

    Args:
        weight: (R, C), any floating dtype; the result has the same.
        statistic: what `prepare` made of the Hessian.
        pattern: what to leave.
        block_size: columns whose mask is chosen together; for N:M it is rounded to whole groups.

    """
    factor = statistic.upper
    work = weight.to(factor.dtype, copy=True)
    work[:, statistic.dead] = 0  # the weights of features that are always zero do nothing
    solve = _solver(work)
    group = pattern.m or 1
    width = max(block_size // group, 1) * group
    for start in range(0, work.shape[1], width):
        block, rest = slice(start, start + width), slice(start + width, None)
        upper, removed = factor[block, block], None
        if pattern.m is None:
            removed = _removed(work[:, block] ** 2 / upper.diagonal() ** 2, pattern)
        work[:, block], errors = solve(work[:, block], upper, pattern, removed)
        work[:, rest] -= errors @ factor[block, rest]
    return work.to(weight.dtype)


def prune_and_round(
    weight: Tensor, statistic: Factor, pattern: Pattern, grid: Grid, dtype: torch.dtype, *, block_size: int = 128
) -> Quantized:
    """Prune `weight` (R, C) and round what is kept, in one solve (section 3.5 of the paper).

    The columns on the right make up for both errors: ``e = (w_j - v_j) / U_jj`` with v_j = 0 where w_j is removed, and
    otherwise on its group's grid, which is fitted when the group's first column is reached.

    Args:
        weight: (R, C), any floating dtype.
        statistic: what `prepare` made of the Hessian.
        pattern: what to leave; of N:M, M divides the group size.
        grid: the kind of grid.
        dtype: that the scales are stored in.
        block_size: columns whose mask is chosen together, rounded to whole groups of the grid.

    """
    factor = statistic.upper
    work = weight.to(factor.dtype, copy=True)
    work[:, statistic.dead] = 0
    columns = work.shape[1]
    groups = [column // grid.group_size for column in range(columns)]
    made = stored.room(work, grid, dtype)
    for start in range(0, columns, width := gptq.block_width(grid, block_size)):
        block, rest = slice(start, start + width), slice(start + width, None)
        removes = _removing(work[:, block], factor[block, block].diagonal(), pattern)
        made.codes[:, block], errors = gptq.round_block(
            work[:, block], factor[block, block], made, groups[block], removes=removes
        )
        work[:, rest] -= errors @ factor[block, rest]
    return made


def _removing(block: Tensor, pivots: Tensor, pattern: Pattern) -> gptq.Removes:
    """What is removed when a column is reached: from the whole block at its first column, or from each group of N:M."""
    group = pattern.m
    if group is None:
        removed = _removed(block**2 / pivots**2, pattern)
        return lambda rows, column, work, pivots: None if column else removed[rows].T

    def of_group(_: slice, column: int, work: Tensor, pivots: Tensor) -> Tensor | None:
        members = slice(column, column + group)
        return None if column % group else _removed(work[members].T ** 2 / pivots[members] ** 2, pattern).T

    return of_group


def _solver(work: Tensor) -> Callable[..., tuple[Tensor, Tensor]]:
    """The GPU kernel if it can be used, otherwise the plain loop."""
    if work.is_cuda:
        from lors_cli.kernels import sparsegpt as kernel  # Triton takes seconds to import, and a CPU does not need it

        if kernel.available(work):
            return kernel.prune_block
    return prune_block


def prune_block(weight: Tensor, factor: Tensor, pattern: Pattern, removed: Tensor | None) -> tuple[Tensor, Tensor]:
    """Prune the columns of one block.

    Args:
        weight: (R, columns).
        factor: (columns, columns), the upper factor of these columns.
        pattern: N:M is chosen here, when a group is reached.
        removed: bool (R, columns), what to remove instead.

    Returns:
        the pruned weight, and the errors to be carried to the columns right of the block; both (R, columns).

    """
    pruned, errors = torch.empty_like(weight), torch.empty_like(weight)
    for start in range(0, len(weight), ROWS):
        rows = slice(start, start + ROWS)
        pruned[rows], errors[rows] = _prune_rows(
            weight[rows], factor, pattern, None if removed is None else removed[rows]
        )
    return pruned, errors


def _prune_rows(weight: Tensor, factor: Tensor, pattern: Pattern, given: Tensor | None) -> tuple[Tensor, Tensor]:
    work = weight.T.contiguous()  # the solve walks over columns, which are contiguous here
    factor, pivots = factor[:, :, None], factor.diagonal()
    errors, product = torch.empty_like(work), torch.empty_like(work)
    removed = torch.empty_like(work, dtype=torch.bool) if given is None else given.T.contiguous()
    for j, (column, pivot, error) in enumerate(zip(work, pivots, errors, strict=True)):
        if given is None and j % (pattern.m or 1) == 0:
            members = slice(j, j + (pattern.m or 1))
            removed[members] = _removed(work[members].T ** 2 / pivots[members] ** 2, pattern).T
        torch.div(column, pivot, out=error).mul_(removed[j])
        # multiplied, then subtracted: a fused multiply-add would round otherwise than the published code
        work[j + 1 :] -= torch.mul(factor[j, j + 1 :], error, out=product[j + 1 :])
    return work.masked_fill_(removed, 0).T, errors.T


def _removed(score: Tensor, pattern: Pattern) -> Tensor:
    """What to remove, bool like `score` (R, columns): from each row's group for N:M, otherwise from the whole block.

    As in the published code, the score at the threshold goes too, so a fraction removes one weight more per block.
    """
    if pattern.n is None or pattern.m is None:
        place = int(score.numel() * pattern.sparsity) + 1
        return score <= score.flatten().kthvalue(place).values
    dropped = pattern.m - pattern.n
    removed = score <= _sorted(score)[dropped - 1][:, None]
    if int(removed.sum()) > dropped * len(score):
        # float32 scores do tie now and then among millions of groups; topk breaks the ties as the published code does
        smallest = score.topk(dropped, dim=1, largest=False).indices
        removed = torch.zeros_like(removed).scatter_(1, smallest, True)
    return removed


def _sorted(score: Tensor) -> list[Tensor]:
    """The columns of `score` (R, M) in ascending order within each row: a sorting network, whole columns at a time."""
    columns = list(score.T)
    for turn in range(len(columns)):
        for i in range(turn % 2, len(columns) - 1, 2):
            low, high = columns[i], columns[i + 1]
            columns[i], columns[i + 1] = torch.minimum(low, high), torch.maximum(low, high)
    return columns
