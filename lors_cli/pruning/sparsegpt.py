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

import logging
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lors_cli.errors import LorsError
from lors_cli.sparsity.pattern import Pattern

log = logging.getLogger(__name__)

ROWS = 4096  # handled together: on a CPU more would not stay in its cache
DAMPING_ATTEMPTS = 4  # each ten times the one before


class Factor(NamedTuple):
    """What the solve needs of a Hessian, shared by all linears with the same input."""

    upper: Tensor  # U of (H + lambda I)^-1 = U^T U, (C, C)
    dead: Tensor  # features that are always zero, bool (C,)
    damping: float  # lambda as a fraction of the mean diagonal of H, as it was needed


def prepare(statistic: Tensor, *, damping: float = 0.01) -> Factor:
    """Factor the inverse of the Hessian `statistic`, (C, C), 2 X^T X up to a factor, which stays as it is.

    Args:
        statistic: (C, C), float32 or float64.
        damping: lambda as a fraction of the mean diagonal.

    Raises:
        LorsError: no damping made the Hessian positive definite.

    """
    diagonal = statistic.diag().clone()
    dead = diagonal == 0
    statistic.diagonal()[dead] = 1
    upper, needed = inverse_factor(statistic, damping)
    statistic.diagonal().copy_(diagonal)
    return Factor(upper, dead, needed)


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


def inverse_factor(hessian: Tensor, damping: float) -> tuple[Tensor, float]:
    """The upper Cholesky factor U of (H + lambda I)^-1 = U^T U, (C, C), for ``lambda = damping * mean(diag H)``.

    A Hessian that is not positive definite in floating point is tried again with ten times the damping, a bounded
    number of times, each logged. The damping is added in place, so that no second matrix is needed.

    Returns:
        the factor, and the damping that succeeded.

    Raises:
        LorsError: all attempts failed.

    """
    diagonal = hessian.diag().clone()
    for attempt in range(DAMPING_ATTEMPTS):
        fraction = damping * 10**attempt
        hessian.diagonal().copy_(diagonal + fraction * diagonal.mean())
        lower, failed = torch.linalg.cholesky_ex(hessian)
        if not failed:
            inverse = torch.cholesky_inverse(lower)
            del lower
            upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            if not failed and bool(upper.isfinite().all()):
                return upper, fraction
        log.warning("the Hessian is not positive definite at damping %g", fraction)
    raise LorsError(
        f"the Hessian is not positive definite, even at damping {fraction:g}: the calibration text is too short or too"
        " uniform, or holds NaN; use more and more varied samples, or a larger prune.damping"
    )
