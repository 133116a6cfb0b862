"""Starts of lora_A from data, with lora_B = 0, so that training starts at the pruned model exactly.

    gradient        LoRS (arXiv 2501.08582): lora_A = V_r^T, the top right singular vectors of G = dY^T X, the gradient
                    of the linear's weight (R, C) over the first batch: the first steps go where the loss falls most
    gradient_svd    the same from G itself, block by block: exact, slow, G of one block in memory
    eva             lora_A = V_r^T of the inputs X (N, C) (Paischer et al. 2024, arXiv 2410.07170, with equal ranks)

The first and the last never form G or X^T X. Subspace iteration needs only products with them. Those of G are the
gradients that a low-rank adapter computes anyway: ``d lora_B = s G lora_A^T`` and ``d lora_A = s lora_B^T G``, both at
an update of zero when the other factor is zero. So a sweep is two ordinary backward passes, for all linears at once,
over any number of micro-batches, in O((R + C) rank) memory per linear. Those of X^T X are two thin products in each
forward. Under SQFT, whose backward masks the gradient, the first sees G * M.

`add_up` replaces a tensor by its sum over all processes that share the batch.
"""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from lors_cli.adapters.base import LowRankAdapter
from lors_cli.errors import LorsError

OVERSAMPLING = 8  # extra directions that are carried and dropped at the end; the usual choice of randomised SVD
SWEEPS = 3  # on gradients of trained models a fourth changes the captured energy by less than 0.1 %

_GRADIENT = "the gradient over the first batch is"

AddUp = Callable[[Tensor], Tensor]


def _alone(tensor: Tensor) -> Tensor:
    return tensor


def initialize_from_gradient(
    adapters: Mapping[str, LowRankAdapter],
    backward: Callable[[], None],
    *,
    sweeps: int = SWEEPS,
    add_up: AddUp = _alone,
) -> None:
    """Set lora_A of every adapter to orthonormal rows that span the strongest directions of its weight gradient.

    Args:
        adapters: by module name, all in one model.
        backward: runs the model forward and backward over the first batch, adding to the parameters' ``grad``.
        sweeps: of subspace iteration; each calls `backward` twice.
        add_up: see above.

    Raises:
        LorsError: a gradient is zero or not finite.

    """
    for adapter in adapters.values():
        rows, columns = adapter.shape
        carried = min(adapter.rank + OVERSAMPLING, rows, columns)
        _set(adapter, torch.randn(carried, columns), torch.zeros(rows, carried))
    for _ in range(sweeps):
        backward()
        for name, adapter in adapters.items():
            basis = _orthonormal(name, adapter.lora_B.grad, add_up)  # a basis of G A^T, (R, carried)
            _set(adapter, torch.zeros_like(adapter.lora_A), basis)
        backward()
        for name, adapter in adapters.items():
            grad = adapter.lora_A.grad
            # a basis of G^T B, (C, carried), strongest direction first
            basis = _orthonormal(name, None if grad is None else grad.T, add_up)
            _set(adapter, basis.T, torch.zeros_like(adapter.lora_B))
    for adapter in adapters.values():
        _start(adapter, adapter.lora_A.detach())


def initialize_from_gradient_svd(
    blocks: Iterable[Mapping[str, LowRankAdapter]], backward: Callable[[], None], *, add_up: AddUp = _alone
) -> None:
    """Start from the singular value decomposition of each gradient; `backward` runs once for each of the `blocks`.

    Raises:
        LorsError: a gradient is zero or not finite.

    """
    blocks = list(blocks)
    for adapter in (adapter for block in blocks for adapter in block.values()):
        adapter.requires_grad_(False)
        nn.init.zeros_(adapter.lora_B)
    for block in blocks:
        gradients = {name: adapter.lora_A.new_zeros(adapter.shape) for name, adapter in block.items()}
        hooks = [adapter.register_forward_hook(_adding_to(gradients[name])) for name, adapter in block.items()]
        for adapter in block.values():
            adapter.lora_A.requires_grad_()  # so that the loss reaches the adapter's output
        backward()
        for hook in hooks:
            hook.remove()
        for name, adapter in block.items():
            gradient = _checked(name, add_up(gradients.pop(name)))
            _start(adapter, torch.linalg.svd(gradient, full_matrices=False).Vh)
            adapter.requires_grad_(False)
    for adapter in (adapter for block in blocks for adapter in block.values()):
        for tensor in adapter.tensors().values():
            tensor.requires_grad_()


def _adding_to(gradient: Tensor) -> Callable[..., None]:
    """A forward hook whose module's backward adds dY^T X to `gradient` (R, C)."""

    def watch(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x = inputs[0].detach().reshape(-1, gradient.shape[1])

        def add(grad_y: Tensor) -> None:
            gradient.add_(grad_y.reshape(-1, gradient.shape[0]).T.to(gradient.dtype) @ x.to(gradient.dtype))

        output.register_hook(add)

    return watch


@torch.no_grad()
def initialize_from_inputs(
    adapters: Mapping[str, LowRankAdapter],
    forward: Callable[[], None],
    *,
    tokens: Callable[[Tensor], Tensor] = lambda x: x,
    sweeps: int = SWEEPS,
    add_up: AddUp = _alone,
) -> None:
    """Set lora_A of every adapter to orthonormal rows that span the strongest directions of its inputs.

    Args:
        adapters: by module name, all in one model.
        forward: runs the model over the first batch.
        tokens: those of a linear's inputs (..., C) that count, such as all but the padding.
        sweeps: of subspace iteration; each calls `forward` once.
        add_up: see above.

    Raises:
        LorsError: the inputs of a linear are zero or not finite.

    """
    bases: dict[str, Tensor] = {}
    products: dict[str, Tensor] = {}
    for name, adapter in adapters.items():
        nn.init.zeros_(adapter.lora_B)
        columns, like = adapter.shape[1], adapter.lora_A
        carried = min(adapter.rank + OVERSAMPLING, columns)
        bases[name] = torch.linalg.qr(torch.randn(columns, carried).to(like)).Q

    def watch(name: str) -> Callable[..., None]:
        def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = tokens(inputs[0])
            x = x.reshape(-1, x.shape[-1]).to(bases[name].dtype)
            products[name] += x.T @ (x @ bases[name])

        return look

    hooks = [adapter.register_forward_pre_hook(watch(name)) for name, adapter in adapters.items()]
    for _ in range(sweeps):
        products.update({name: torch.zeros_like(basis) for name, basis in bases.items()})
        forward()
        for name in adapters:
            bases[name] = _orthonormal(name, products.pop(name), add_up, "the inputs of the first batch are")
    for hook in hooks:
        hook.remove()
    for name, adapter in adapters.items():
        _start(adapter, bases[name].T)


def _start(adapter: LowRankAdapter, directions: Tensor) -> None:
    """lora_A from the first of the `directions`, rows; lora_B zero."""
    _set(adapter, directions[: adapter.rank], torch.zeros(adapter.shape[0], adapter.rank))


def _set(adapter: LowRankAdapter, lora_A: Tensor, lora_B: Tensor) -> None:
    for name, value in (("lora_A", lora_A), ("lora_B", lora_B)):
        # a clone: a few rows of a larger matrix would keep all of it in memory
        placed = value.to(device=adapter.linear.weight.device, dtype=adapter.parameter_dtype)
        setattr(adapter, name, nn.Parameter(placed.clone(memory_format=torch.contiguous_format)))


def _orthonormal(name: str, directions: Tensor | None, add_up: AddUp, what: str = _GRADIENT) -> Tensor:
    """Orthonormal columns that span `directions` (n, k), ordered by singular value."""
    summed = None if directions is None else add_up(directions.contiguous())
    basis: Tensor = torch.linalg.svd(_checked(name, summed, what), full_matrices=False).U
    return basis


def _checked(name: str, matrix: Tensor | None, what: str = _GRADIENT) -> Tensor:
    if matrix is None or not bool(matrix.isfinite().all()) or not bool(matrix.any()):
        raise LorsError(f"{name}: {what} zero or not finite, so lora_A has nothing to start from; check data and model")
    return matrix
