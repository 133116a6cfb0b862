"""The Hessian of a linear's squared error, and the factor of its inverse that solves column by column need."""

import logging
from typing import NamedTuple

import torch
from torch import Tensor

from lors_cli.errors import LorsError

log = logging.getLogger(__name__)

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
        " uniform, or holds NaN; use more and more varied samples, or a larger damping"
    )
