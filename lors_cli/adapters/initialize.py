"""Gradient-based initialisation of lora_A: the top right singular vectors of the loss's weight gradient.

LoRS (arXiv 2501.08582): with G = dY^T X the gradient of a linear's weight (R, C) over the first batch,
``lora_B = 0`` and ``lora_A = V_r^T``, so that the first steps move in the directions that lower the loss most.

No G is ever formed. Subspace iteration needs only the products G M and M^T G, and those are the gradients that a
low-rank adapter computes anyway: ``d lora_B = s G lora_A^T`` and ``d lora_A = s lora_B^T G``, both at an update of
zero when the other factor is zero. So a sweep is two ordinary backward passes, for all linears at once, over any
number of micro-batches, in O((R + C) rank) memory per linear.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from lors_cli.adapters.base import LowRankAdapter
from lors_cli.errors import LorsError

OVERSAMPLING = 8  # extra directions that are carried and dropped at the end; the usual choice of randomised SVD
SWEEPS = 2  # on gradients of trained models a third changes the captured energy by less than 1 %


def initialize_from_gradient(
    adapters: Mapping[str, LowRankAdapter], backward: Callable[[], None], *, sweeps: int = SWEEPS
) -> None:
    """Set lora_A of every adapter to orthonormal rows that span the strongest directions of its weight gradient.

    Args:
        adapters: by module name, all in one model.
        backward: runs the model forward and backward over the first batch, adding to the parameters' ``grad``.
        sweeps: of subspace iteration; each calls `backward` twice.

    Raises:
        LorsError: a gradient is zero or not finite.

    """
    for adapter in adapters.values():
        rows, columns = adapter.linear.weight.shape
        carried = min(adapter.rank + OVERSAMPLING, rows, columns)
        _set(adapter, torch.randn(carried, columns), torch.zeros(rows, carried))
    for _ in range(sweeps):
        backward()
        for name, adapter in adapters.items():
            basis = _orthonormal(name, adapter.lora_B.grad)  # of G A^T, (R, carried)
            _set(adapter, torch.zeros_like(adapter.lora_A), basis)
        backward()
        for name, adapter in adapters.items():
            basis = _orthonormal(name, _transposed(adapter.lora_A.grad))  # of G^T B, (C, carried), strongest first
            _set(adapter, basis.T, torch.zeros_like(adapter.lora_B))
    for adapter in adapters.values():
        _set(adapter, adapter.lora_A[: adapter.rank].detach(), torch.zeros_like(adapter.lora_B[:, : adapter.rank]))


def _set(adapter: LowRankAdapter, lora_A: Tensor, lora_B: Tensor) -> None:
    for name, value in (("lora_A", lora_A), ("lora_B", lora_B)):
        placed = value.to(device=adapter.linear.weight.device, dtype=adapter.parameter_dtype).contiguous()
        setattr(adapter, name, nn.Parameter(placed))


def _transposed(grad: Tensor | None) -> Tensor | None:
    return None if grad is None else grad.T


def _orthonormal(name: str, directions: Tensor | None) -> Tensor:
    """Orthonormal columns that span `directions` (n, k), ordered by singular value."""
    if directions is None or not bool(directions.isfinite().all()) or not bool(directions.any()):
        raise LorsError(
            f"{name}: the gradient over the first batch is zero or not finite, so train.init: gradient has nothing to"
            " start from; use train.init: random, or check the data and the model"
        )
    basis: Tensor = torch.linalg.svd(directions, full_matrices=False).U
    return basis
