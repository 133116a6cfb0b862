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

import torch
from torch import Tensor

from lors_cli.errors import LorsError
from lors_cli.sparsity.pattern import Pattern

log = logging.getLogger(__name__)

DAMPING_ATTEMPTS = 4  # each ten times the one before


def prune(
    weight: Tensor, statistic: Tensor, pattern: Pattern, *, damping: float = 0.01, block_size: int = 128
) -> Tensor:
    """Prune and update `weight` (R, C).

    Args:
        weight: (R, C), any floating dtype; the result has the same.
        statistic: (C, C), the Hessian 2 X^T X over the calibration tokens up to a factor, float32 or float64.
        pattern: what to leave.
        damping: lambda as a fraction of the mean diagonal of the Hessian.
        block_size: columns whose mask is chosen together; for N:M it is rounded to whole groups.

    Raises:
        LorsError: no damping made the Hessian positive definite.

    """
    hessian = statistic.clone()
    work = weight.to(hessian.dtype, copy=True)
    dead = hessian.diagonal() == 0  # features that are always zero: their weights do nothing
    hessian.diagonal()[dead] = 1
    work[:, dead] = 0
    factor = inverse_factor(hessian, damping)
    group = pattern.m or 1
    width = max(block_size // group, 1) * group
    for start in range(0, work.shape[1], width):
        block, rest = slice(start, start + width), slice(start + width, None)
        work[:, block], errors = _prune_block(work[:, block], factor[block, block], pattern)
        work[:, rest] -= errors @ factor[block, rest]
    return work.to(weight.dtype)


def _prune_block(weight: Tensor, factor: Tensor, pattern: Pattern) -> tuple[Tensor, Tensor]:
    """Prune the columns of one block; `weight` is (R, columns), `factor` (columns, columns).

    Returns:
        the pruned weight, and the errors to be carried to the columns right of the block; both (R, columns).

    """
    work = weight.T.contiguous()  # the solve walks over columns, which are contiguous here
    pivots = factor.diagonal()
    group = pattern.m or len(work)
    errors = torch.empty_like(work)
    for j in range(len(work)):
        if j % group == 0:
            score = work[j : j + group] ** 2 / pivots[j : j + group, None] ** 2
            removed = _removed(score, pattern)
        errors[j] = (work[j] / pivots[j]).where(removed[j % group], 0)
        work[j, removed[j % group]] = 0
        # multiplied, then subtracted: a fused multiply-add would round otherwise than the published code
        work[j + 1 :] -= torch.outer(factor[j, j + 1 :], errors[j])
    return work.T, errors.T.contiguous()


def _removed(score: Tensor, pattern: Pattern) -> Tensor:
    """What to remove, bool like `score` (columns, R): of each row's group for N:M, else of the whole block.

    As in the published code, the score at the threshold goes too, so a fraction removes one weight more per block.
    """
    if pattern.n and pattern.m:
        # float32 scores do tie now and then among millions of groups; topk breaks the ties as the published code does
        dropped = score.T.topk(pattern.m - pattern.n, dim=1, largest=False).indices
        return torch.zeros_like(score, dtype=torch.bool).scatter_(0, dropped.T, True)
    threshold = score.flatten().sort().values[int(score.numel() * pattern.sparsity)]
    return score <= threshold


def inverse_factor(hessian: Tensor, damping: float) -> Tensor:
    """The upper Cholesky factor U of (H + lambda I)^-1 = U^T U, (C, C), for ``lambda = damping * mean(diag H)``.

    A Hessian that is not positive definite in floating point is tried again with ten times the damping, a bounded
    number of times, each logged.

    Raises:
        LorsError: all attempts failed.

    """
    mean = hessian.diag().mean()
    for attempt in range(DAMPING_ATTEMPTS):
        fraction = damping * 10**attempt
        damped = hessian.clone()
        damped.diagonal().add_(fraction * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            upper: Tensor
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed and bool(upper.isfinite().all()):
                return upper
        log.warning("Hessian not positive definite at damping %g", fraction)
    raise LorsError(
        f"the Hessian is not positive definite, even at damping {fraction:g}: the calibration text is too short or too"
        " uniform, or holds NaN; use more and more varied samples, or a larger prune.damping"
    )
