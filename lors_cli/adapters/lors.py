"""LoRS: the effective weight of SQFT with a forward and a backward of its own; only X and the parameters are saved.

Hu et al. 2025, "LoRS: Efficient Low-Rank Adaptation for Sparse Large Language Model", arXiv 2501.08582. With
M = (W != 0):

    forward     W' = (W + s B A) * M        Y = X W'^T
    backward    dX = dY W'                  W' is built again
                dA = s (dY B)^T X           the mask on dW is dropped (straight-through), so that
                dB = s dY^T (X A^T)         dY^T X, an R x C product over all tokens, is never formed

Multiply-adds: forward RCN + rRC; backward RCN + rRC + 2rRN + 2rCN. Where the paper's text slips: it says that "rL"
numbers are saved in one place, it is CL, the input X; its Listing 5 leaves the scale s out of both gradients and
returns a gradient for a bias that is frozen or absent.

The products with W' are opaque custom operators. Written as ordinary tensor code they would let ``torch.compile`` see
that both directions make the same W', and it would save it for the backward, the tensor that LoRS exists to free.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from lors_cli.adapters import effective_cache
from lors_cli.adapters.base import LowRankAdapter, own
from lors_cli.adapters.effective_weight import EffectiveWeight
from lors_cli.adapters.packed_linear import PackedLinear
from lors_cli.kernels.packed import weight_rows
from lors_cli.sparsity.packed import Stored


class LoRS(LowRankAdapter):
    """The masked low-rank update with the paper's backward.

    Args:
        linear: also a `PackedLinear`.
        stochastic: round W' to bfloat16 stochastically; `rounding_seed` is then to be changed once per optimiser step.
        quantization_aware: put W' on the grid of W, which is an `Int4Linear`'s; backward is as without.
        options: of every adapter.

    """

    bases = ("dense", "packed", "int4")
    rounding_seed: Tensor | None
    slot: effective_cache.Slot | None = None  # where W' is kept between uses

    def __init__(
        self, linear: Any, *, stochastic: bool = False, quantization_aware: bool = False, **options: Any
    ) -> None:
        super().__init__(linear, **options)
        self.bits: int = linear.grid.bits if quantization_aware else 0
        seed = torch.zeros((), dtype=torch.int64, device=linear.weight.device) if stochastic else None
        self.register_buffer("rounding_seed", seed, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """X (..., C) to Y (..., R). Under autocast both are of its dtype, to which W' is rounded once."""
        slot = self.slot.number if self.slot else effective_cache.NONE
        operands = Operands(*self.stored, *self.factors, self.rounding_seed, self.scale, slot, self.bits)
        y: Tensor = torch.ops.lors.linear(self._as_multiplied(x), self.linear.bias, *operands)
        return y

    @property
    def stored(self) -> Stored:
        """W as it is kept, dense or packed."""
        return self.linear.stored if isinstance(self.linear, PackedLinear) else Stored(self.linear.weight)

    def effective_weight(self, weight: Tensor) -> Tensor:
        """W + s (B A) * M, with W's support."""
        operands = Operands(*Stored(weight), *self.factors, None, self.scale, effective_cache.NONE)
        made: Tensor = torch.ops.lors.effective_weight(weight.dtype, *operands)
        return made


class Operands(NamedTuple):
    """What every operator here takes besides X or dY: what W' is made from, and the slot where it may be kept.

    Operators take no tuples, so it is spread into their arguments and put together again inside.
    """

    weight: Any  # with the next four W as it is stored
    positions: Any
    starts: Any
    scales: Any
    zero_points: Any
    lora_A: Any
    lora_B: Any
    seed: Any
    scale: Any
    slot: Any
    bits: Any = 0  # of the codes of W', 0 where it has none
    masked: Any = False  # whether dA and dB are those of the update under the mask, as SQFT has them

    def effective(self, dtype: torch.dtype) -> EffectiveWeight:
        """W' in `dtype`."""
        stored = Stored(*self[:5])
        return EffectiveWeight(stored, self.lora_A, self.lora_B, self.scale, self.seed, dtype, self.slot, self.bits)


_OPERANDS = (
    "Tensor weight, Tensor? positions, Tensor? starts, Tensor? scales, Tensor? zero_points, Tensor lora_A,"
    " Tensor lora_B, Tensor? seed, float scale, int slot, int bits, bool masked"
)
UPDATE_BYTES = 1 << 25  # of the gradient of so many rows of the update, in its own precision, that exist at once


def _operator(name: str, first: str, result: str = "Tensor") -> Any:
    """Register a function of `first` and the `Operands` as an operator."""
    return torch.library.custom_op(f"lors::{name}", mutates_args=(), schema=f"({first}, {_OPERANDS}) -> {result}")


@_operator("effective_weight", "ScalarType dtype")
def _effective_weight(dtype: torch.dtype, *operands: Any) -> Tensor:
    """W' (R, C) in `dtype`, never a kept one."""
    return Operands(*operands).effective(dtype).make()


@_operator("linear", "Tensor x, Tensor? bias")
def _linear(x: Tensor, bias: Tensor | None, *operands: Any) -> Tensor:
    """X W'^T + bias, (..., R)."""
    effective = Operands(*operands).effective(x.dtype)
    bias = None if bias is None else bias.to(x.dtype)
    if not _in_blocks(x):
        return own(F.linear(x, effective.whole(), bias), x.shape[:-1])
    rows, columns = effective.shape
    flat = x.reshape(-1, columns)
    y = x.new_empty(len(flat), rows)
    for first, end, part in effective.blocks():
        torch.mm(flat, part.T, out=y[:, first:end])
    if bias is not None:
        y += bias
    return own(y, x.shape[:-1])


@_operator("linear_input_grad", "Tensor grad_y")
def _linear_input_grad(grad_y: Tensor, *operands: Any) -> Tensor:
    """The gradient of X, dY W' (..., C)."""
    effective = Operands(*operands).effective(grad_y.dtype)
    if not _in_blocks(grad_y):
        return own(grad_y @ effective.whole(last=True), grad_y.shape[:-1])
    rows, columns = effective.shape
    flat = grad_y.reshape(-1, rows)
    grad_x = grad_y.new_empty(len(flat), columns)
    for first, end, part in effective.blocks(last=True):
        torch.addmm(grad_x, flat[:, first:end], part, beta=float(first > 0), out=grad_x)
    return own(grad_x, grad_y.shape[:-1])


@_operator("masked_grads", "Tensor x, Tensor grad_y", "(Tensor, Tensor)")
def _masked_grads(x: Tensor, grad_y: Tensor, *operands: Any) -> tuple[Tensor, Tensor]:
    """The gradients of A and B under the mask, with U = s (dY^T X) * M: dA = B^T U and dB = U A^T.

    U is made in blocks of rows: as a whole it would take several times what codes do.
    """
    weight, (lora_A, lora_B, _, scale) = Stored(*operands[:5]), operands[5:9]
    shape = lora_B.shape[0], lora_A.shape[1]
    grad_A, grad_B = torch.zeros_like(lora_A), torch.empty_like(lora_B)
    size = update_rows(shape, lora_A.itemsize)
    for first in range(0, shape[0], size):
        rows = slice(first, min(first + size, shape[0]))
        update = (grad_y[:, rows].T @ x).to(lora_A.dtype).mul_(scale)
        update.mul_(weight_rows(weight, shape, rows.start, rows.stop, x.dtype) != 0)
        torch.mm(update, lora_A.T, out=grad_B[rows])
        grad_A.addmm_(lora_B[rows].T, update)
    return grad_A, grad_B


def update_rows(shape: tuple[int, int], itemsize: int) -> int:
    """Of how many rows of a weight of `shape` the gradient of the update exists at once."""
    return min(max(UPDATE_BYTES // (itemsize * shape[1]), 1), shape[0])


def _in_blocks(x: Tensor) -> bool:
    """Whether to multiply block of rows by block of rows, so that W' never exists as a whole.

    On a CPU a block stays in the cache. In 16 bits the blocks' parts of dX would each be rounded.
    """
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


@_effective_weight.register_fake
def _(dtype: torch.dtype, *operands: Any) -> Tensor:
    rows, columns = Operands(*operands).effective(dtype).shape
    return Operands(*operands).lora_A.new_empty(rows, columns, dtype=dtype)  # type: ignore[no-any-return]


@_linear.register_fake
def _(x: Tensor, bias: Any, *operands: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], Operands(*operands).lora_B.shape[0])


@_linear_input_grad.register_fake
def _(grad_y: Tensor, *operands: Any) -> Tensor:
    return grad_y.new_empty(*grad_y.shape[:-1], Operands(*operands).lora_A.shape[1])


@_masked_grads.register_fake
def _(x: Tensor, grad_y: Tensor, *operands: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(Operands(*operands).lora_A), torch.empty_like(Operands(*operands).lora_B)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, _, *tensors, ctx.scale, ctx.slot, ctx.bits, ctx.masked = inputs
    ctx.save_for_backward(x, *tensors)


def _backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    x, *tensors = ctx.saved_tensors
    operands = Operands._make([*tensors, ctx.scale, ctx.slot, ctx.bits, ctx.masked])
    needed = Operands._make(ctx.needs_input_grad[2:])
    lora_A, lora_B = operands.lora_A, operands.lora_B
    grad_x = grad_bias = grad_A = grad_B = None
    if ctx.needs_input_grad[0]:
        grad_x = torch.ops.lors.linear_input_grad(grad_y, *operands)
    x, grad_y = x.reshape(-1, x.shape[-1]), grad_y.reshape(-1, grad_y.shape[-1])
    if ctx.needs_input_grad[1]:
        grad_bias = grad_y.sum(0)
    if ctx.masked and (needed.lora_A or needed.lora_B):
        grad_A, grad_B = torch.ops.lors.masked_grads(x, grad_y, *operands)
    if needed.lora_A and not ctx.masked:
        grad_A = ctx.scale * ((grad_y @ lora_B.to(grad_y.dtype)).T @ x).to(lora_A.dtype)
    if needed.lora_B and not ctx.masked:
        grad_B = ctx.scale * (grad_y.T @ (x @ lora_A.to(x.dtype).T)).to(lora_B.dtype)
    none = Operands._make([None] * len(operands))
    return grad_x, grad_bias, *none._replace(lora_A=grad_A, lora_B=grad_B)


_linear.register_autograd(_backward, setup_context=_save)


# Formulas of multiply-adds get shapes where the operators have tensors.
@register_flop_formula(torch.ops.lors.effective_weight)
def _effective_weight_flops(dtype: Any, *operands: Any, **_: Any) -> int:
    (rank, columns), (rows, _) = Operands(*operands).lora_A, Operands(*operands).lora_B
    return int(2 * rows * rank * columns)


@register_flop_formula(torch.ops.lors.linear)
def _linear_flops(x: Any, bias: Any, *operands: Any, **_: Any) -> int:
    return _product_flops(x, Operands(*operands))


@register_flop_formula(torch.ops.lors.linear_input_grad)
def _linear_input_grad_flops(grad_y: Any, *operands: Any, **_: Any) -> int:
    return _product_flops(grad_y, Operands(*operands))


@register_flop_formula(torch.ops.lors.masked_grads)
def _masked_grads_flops(x: Any, grad_y: Any, *operands: Any, **_: Any) -> int:
    (rank, columns), (rows, _) = Operands(*operands).lora_A, Operands(*operands).lora_B
    return int(2 * rows * columns * (math.prod(grad_y[:-1]) + 2 * rank))


def _product_flops(vectors: Any, operands: Operands) -> int:
    """The FLOPs of a product with W', and of making W' unless a kept one was used; counted after the operator ran."""
    (rank, columns), (rows, _) = operands.lora_A, operands.lora_B
    making = rank if effective_cache.last_use_made(operands.slot) else 0
    return int(2 * rows * columns * (math.prod(vectors[:-1]) + making))
