"""SparseGPT: remove weights and let the remaining ones of the row make up for them.

Frantar and Alistarh 2023, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", arXiv
2301.00774, Algorithm 1. With H = 2 X^T X + lambda I and U the upper Cholesky factor of H^-1, columns are handled from
left to right: a removed weight w_j leaves the error e = w_j / U_jj, and the columns k > j of its row get
``w_k -= e * U_jk``. The weights to remove are those with the smallest w_j^2 / U_jj^2, chosen among the 128 columns of
a block (unstructured) or the M columns of a group (N:M) once the block or group is reached.
"""

import logging

import torch
from torch import Tensor

from lors_cli.errors import LorsError
from lors_cli.sparsity.mask import keep_largest
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
    work = weight.to(hessian.dtype).T.contiguous()  # (C, R): the solve walks over columns, here contiguous rows
    dead = hessian.diagonal() == 0  # features that are always zero: their weights do nothing
    hessian.diagonal()[dead] = 1
    work[dead] = 0
    factor = inverse_factor(hessian, damping)
    group = pattern.m or 1
    width = max(block_size // group, 1) * group
    for start in range(0, len(work), width):
        columns = slice(start, start + width)
        errors = _prune_block(work[columns], factor[columns, columns], pattern)
        work[start + width :] -= factor[columns, start + width :].T @ errors
    return work.T.to(weight.dtype).contiguous()


def _prune_block(work: Tensor, factor: Tensor, pattern: Pattern) -> Tensor:
    """Prune the columns of one block in place; `work` is (columns, R), `factor` (columns, columns).

    Returns:
        (columns, R), the errors to be carried to the columns right of the block.

    """
    pivots = factor.diagonal()
    group = pattern.m or len(work)
    errors = torch.empty_like(work)
    for j in range(len(work)):
        if j % group == 0:
            score = (work[j : j + group] / pivots[j : j + group, None]) ** 2
            removed = ~keep_largest(score.T, pattern, per_row=False).T
        errors[j] = (work[j] / pivots[j]).where(removed[j % group], 0)
        work[j, removed[j % group]] = 0
        work[j + 1 :].addr_(factor[j, j + 1 :], errors[j], alpha=-1)
    return errors


def inverse_factor(hessian: Tensor, damping: float) -> Tensor:
    """The upper Cholesky factor U of (H + lambda I)^-1 = U^T U, (C, C), for ``lambda = damping * mean(diag H)``.

    A Hessian that is not positive definite in floating point is tried again with ten times the damping, a bounded
    number of times, each logged.

    Raises:
        LorsError: all attempts failed.

    """
    scale = float(hessian.diagonal().mean())
    for attempt in range(DAMPING_ATTEMPTS):
        fraction = damping * 10**attempt
        damped = hessian.clone()
        damped.diagonal().add_(fraction * scale)
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
