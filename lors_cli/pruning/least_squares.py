"""The kept weights are fitted to what the dense linear computes: masked least squares on the calibration Hessian.

With H = X^T X of the inputs X (N, C) that the linear gets, a dense weight W_d (R, C), its pruned form W_0 and the mask
M = (W_0 != 0), each row of the result minimises, over the weights on M,

    (w - w_d) H (w - w_d)^T + lambda norm(w - w_0)^2,    lambda = damping * mean(diag H)

The first term is norm(X w^T - X w_d^T)^2, what the row's outputs lose. The second keeps weights that the text hardly
tells apart near where pruning left them. On the support S of a row the solution is that of the normal equations
``(H_SS + lambda I) w_S = (w_d H)_S + lambda w_0S``. Every row has another S, so factoring would cost R C^3. All rows
are solved together instead, by conjugate gradients with the preconditioner ``diag(H) + lambda`` (Hestenes and Stiefel
1952), whose iteration is one product (R, C) x (C, C): the supports only mask its result.

The fit aims at what the dense weights make of the inputs X that the pruned blocks before leave. Aimed at the dense
model's own outputs, from its own inputs, each fit lowers its error further, but what the X lack shrinks the outputs of
one linear after another, and the model is ruined (docs/recovery.md).

The problem is that of Boža 2024, "Fast and Effective Weight Update for Pruned Large Language Models", arXiv
2401.02938, who solves it by ADMM with one inverse for all rows.
"""

from typing import NamedTuple

import torch
from torch import Tensor

ROWS = 4096  # solved together: six matrices of so many rows are in memory


class Fit(NamedTuple):
    """An updated weight, and the share of its output's energy that is lost without and with the update."""

    weight: Tensor
    before: float
    after: float
    damping: float  # lambda as a fraction of the mean diagonal, as it was taken
    steps: int  # of the row that took most
    rows_left: int  # how many rows are as they were, because the fit did not make them better


def update(
    dense: Tensor,
    pruned: Tensor,
    statistic: Tensor,
    tokens: int | None = None,
    *,
    update_damping: float = 0.1,
    update_iterations: int = 8,
    update_tolerance: float = 0.01,
) -> Fit:
    """Fit the weights on the support of `pruned`; the support stays as it is, bit for bit.

    Args:
        dense: (R, C), the weight before pruning.
        pruned: (R, C), what a pruning method made of it, in the same dtype.
        statistic: (C, C), X^T X up to a factor, float32 or float64, in which the solve is done.
        tokens: N. Fewer than C leave the Hessian without full rank; the damping is then raised to C / N times.
        update_damping: lambda as a fraction of the mean diagonal.
        update_iterations: at most so many steps.
        update_tolerance: a row is done once its residual, in the norm of the preconditioner, has fallen to this.

    """
    fraction = update_damping * max(dense.shape[1] / (tokens or dense.shape[1]), 1)
    damping = fraction * statistic.diagonal().mean()
    tolerance = max(update_tolerance, torch.finfo(statistic.dtype).eps)  # further the residual is noise
    parts, before, after, whole, steps, left = [], 0.0, 0.0, 0.0, 0, 0
    for original, start in zip(dense.split(ROWS), pruned.split(ROWS), strict=True):
        target = original.to(statistic.dtype)
        solution, lost, taken = _solve(target, start, statistic, damping, update_iterations, tolerance)
        fitted = solution.to(start.dtype)
        # A weight that the fit would make zero, or too large for the dtype, stays what it was.
        fitted = torch.where((start != 0) & (fitted != 0) & fitted.isfinite(), fitted, start)
        still = energy(target - fitted, statistic)
        worse = ~(still < lost)
        parts.append(torch.where(worse[:, None], start, fitted))
        before += float(lost.sum(dtype=torch.float64))
        after += float(torch.where(worse, lost, still).sum(dtype=torch.float64))
        whole += float(energy(target, statistic).sum(dtype=torch.float64))
        steps, left = max(steps, taken), left + int(worse.sum())
    scale = whole or 1.0
    return Fit(torch.cat(parts), before / scale, after / scale, fraction, steps, left)


def _solve(
    dense: Tensor, pruned: Tensor, hessian: Tensor, damping: Tensor, iterations: int, tolerance: float
) -> tuple[Tensor, Tensor, int]:
    """The rows' solutions, (R, C), the energies that they lost before, (R,), and the steps that were taken.

    All sums stay on the device.
    """
    mask, weight = pruned != 0, pruned.to(hessian.dtype, copy=True)
    # An input that is always zero has a diagonal, and thus a gradient, of zero.
    scale = hessian.diagonal() + damping
    inverse = torch.where(scale > 0, 1 / scale, 0)
    change = dense - weight
    residual = change @ hessian
    lost = (residual * change).sum(dim=1)
    residual.mul_(mask)
    direction = residual * inverse
    size = (residual * direction).sum(dim=1, keepdim=True)
    goal = size * tolerance**2
    for step in range(iterations):
        going = size > goal
        if not going.any():
            return weight, lost, step
        product = (direction @ hessian).mul_(mask).add_(damping * direction)
        curvature = (direction * product).sum(dim=1, keepdim=True)
        length = torch.where(going & (curvature > 0), size / curvature, 0)
        weight.addcmul_(length, direction)
        residual.addcmul_(length, product, value=-1)
        conditioned = residual * inverse
        before, size = size, (residual * conditioned).sum(dim=1, keepdim=True)
        direction = torch.where(going, size / before, 0) * direction + conditioned
    return weight, lost, iterations


def energy(change: Tensor, hessian: Tensor) -> Tensor:
    """``d H d^T`` for each row d of `change`, (R,)."""
    return ((change @ hessian) * change).sum(dim=1)
