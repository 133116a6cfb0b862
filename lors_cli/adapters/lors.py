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
that both directions merge the same, and it would save W' for the backward, the tensor that LoRS exists to free.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from lors_cli.adapters import effective_cache
from lors_cli.adapters.base import LowRankAdapter
from lors_cli.adapters.effective_weight import Merged
from lors_cli.adapters.packed_linear import PackedLinear
from lors_cli.sparsity.packed import Stored


class LoRS(LowRankAdapter):
    """The masked low-rank update with the paper's backward.

    Args:
        linear: also a `PackedLinear`.
        stochastic: round the merged weight to bfloat16 stochastically; `rounding_seed` is then to be changed once per
            optimiser step.
        options: of every adapter.

    """

    options = frozenset({"merge_cache", "merge_rounding"})
    bases = ("dense", "packed")
    rounding_seed: Tensor | None
    slot: effective_cache.Slot | None = None  # where the merged weight is kept between uses

    def __init__(self, linear: Any, *, stochastic: bool = False, **options: Any) -> None:
        super().__init__(linear, **options)
        seed = torch.zeros((), dtype=torch.int64, device=linear.weight.device) if stochastic else None
        self.register_buffer("rounding_seed", seed, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """X (..., C) to Y (..., R). Under autocast both are of its dtype, to which W' is rounded once."""
        y: Tensor = torch.ops.lors.linear(
            self._as_multiplied(x),
            *self.stored,
            self.linear.bias,
            self.lora_A,
            self.lora_B,
            self.scale,
            self.rounding_seed,
            self.slot.number if self.slot else effective_cache.NONE,
        )
        return y

    @property
    def stored(self) -> Stored:
        """W as it is kept, dense or packed."""
        return self.linear.stored if isinstance(self.linear, PackedLinear) else Stored(self.linear.weight)

    def effective_weight(self, weight: Tensor) -> Tensor:
        """W + s (B A) * M, with W's support."""
        return torch.ops.lors.merge(weight, None, None, self.lora_A, self.lora_B, self.scale, weight.dtype)  # type: ignore[no-any-return]


_STORED = "Tensor weight, Tensor? positions, Tensor? starts"
_UPDATE = "Tensor lora_A, Tensor lora_B, float scale"


@torch.library.custom_op(
    "lors::merge", mutates_args=(), schema=f"({_STORED}, {_UPDATE}, ScalarType dtype, Tensor? seed=None) -> Tensor"
)
def _merge(
    weight: Tensor,
    positions: Tensor | None,
    starts: Tensor | None,
    lora_A: Tensor,
    lora_B: Tensor,
    scale: float,
    dtype: torch.dtype,
    seed: Tensor | None = None,
) -> Tensor:
    """The merged weight (R, C) of a dense or packed W."""
    return Merged(Stored(weight, positions, starts), lora_A, lora_B, scale, seed, dtype).make()


@torch.library.custom_op(
    "lors::linear",
    mutates_args=(),
    schema=f"(Tensor x, {_STORED}, Tensor? bias, {_UPDATE}, Tensor? seed, int slot) -> Tensor",
)
def _linear(
    x: Tensor,
    weight: Tensor,
    positions: Tensor | None,
    starts: Tensor | None,
    bias: Tensor | None,
    lora_A: Tensor,
    lora_B: Tensor,
    scale: float,
    seed: Tensor | None,
    slot: int,
) -> Tensor:
    """X W'^T + bias, (..., R)."""
    merged = Merged(Stored(weight, positions, starts), lora_A, lora_B, scale, seed, x.dtype, slot)
    bias = None if bias is None else bias.to(x.dtype)
    if not _in_blocks(x):
        return F.linear(x, merged.whole(), bias)
    rows, columns = merged.shape
    flat = x.reshape(-1, columns)
    y = x.new_empty(len(flat), rows)
    for first, end, part in merged.blocks():
        torch.mm(flat, part.T, out=y[:, first:end])
    if bias is not None:
        y += bias
    return y.view(*x.shape[:-1], rows)


@torch.library.custom_op(
    "lors::linear_input_grad",
    mutates_args=(),
    schema=f"(Tensor grad_y, {_STORED}, {_UPDATE}, Tensor? seed, int slot) -> Tensor",
)
def _linear_input_grad(
    grad_y: Tensor,
    weight: Tensor,
    positions: Tensor | None,
    starts: Tensor | None,
    lora_A: Tensor,
    lora_B: Tensor,
    scale: float,
    seed: Tensor | None,
    slot: int,
) -> Tensor:
    """DY W', (..., C)."""
    merged = Merged(Stored(weight, positions, starts), lora_A, lora_B, scale, seed, grad_y.dtype, slot)
    if not _in_blocks(grad_y):
        return grad_y @ merged.whole(last=True)
    rows, columns = merged.shape
    flat = grad_y.reshape(-1, rows)
    grad_x = grad_y.new_empty(len(flat), columns)
    for first, end, part in merged.blocks(last=True):
        torch.addmm(grad_x, flat[:, first:end], part, beta=float(first > 0), out=grad_x)
    return grad_x.view(*grad_y.shape[:-1], columns)


def _in_blocks(x: Tensor) -> bool:
    """Whether to multiply block of rows by block of rows, so that W' never exists as a whole.

    On a CPU a block stays in the cache. In 16 bits the blocks' parts of dX would each be rounded.
    """
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


@_merge.register_fake
def _(
    weight: Tensor,
    positions: Any,
    starts: Any,
    lora_A: Tensor,
    lora_B: Tensor,
    scale: float,
    dtype: torch.dtype,
    seed: Any = None,
) -> Tensor:
    return lora_A.new_empty(lora_B.shape[0], lora_A.shape[1], dtype=dtype)


@_linear.register_fake
def _(
    x: Tensor, weight: Tensor, positions: Any, starts: Any, bias: Any, lora_A: Tensor, lora_B: Tensor, *_: Any
) -> Tensor:
    return x.new_empty(*x.shape[:-1], lora_B.shape[0])


@_linear_input_grad.register_fake
def _(grad_y: Tensor, weight: Tensor, positions: Any, starts: Any, lora_A: Tensor, *_: Any) -> Tensor:
    return grad_y.new_empty(*grad_y.shape[:-1], lora_A.shape[1])


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, positions, starts, _, lora_A, lora_B, ctx.scale, seed, ctx.slot = inputs
    ctx.save_for_backward(x, weight, positions, starts, lora_A, lora_B, seed)


def _backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, positions, starts, lora_A, lora_B, seed = ctx.saved_tensors
    grad_x = grad_A = grad_B = None
    if ctx.needs_input_grad[0]:
        grad_x = torch.ops.lors.linear_input_grad(
            grad_y, weight, positions, starts, lora_A, lora_B, ctx.scale, seed, ctx.slot
        )
    x, grad_y = x.reshape(-1, x.shape[-1]), grad_y.reshape(-1, grad_y.shape[-1])
    if ctx.needs_input_grad[5]:
        grad_A = ctx.scale * ((grad_y @ lora_B.to(grad_y.dtype)).T @ x).to(lora_A.dtype)
    if ctx.needs_input_grad[6]:
        grad_B = ctx.scale * (grad_y.T @ (x @ lora_A.to(x.dtype).T)).to(lora_B.dtype)
    return grad_x, None, None, None, None, grad_A, grad_B, None, None, None


_linear.register_autograd(_backward, setup_context=_save)


@register_flop_formula(torch.ops.lors.merge)
def _merge_flops(weight: Any, positions: Any, starts: Any, lora_A: Any, lora_B: Any, *_: Any, **__: Any) -> int:
    return int(2 * lora_B[0] * lora_A[0] * lora_A[1])


@register_flop_formula(torch.ops.lors.linear)
def _linear_flops(x: Any, weight: Any, positions: Any, starts: Any, bias: Any, *rest: Any, **_: Any) -> int:
    return _product_flops(x, *rest)


@register_flop_formula(torch.ops.lors.linear_input_grad)
def _linear_input_grad_flops(grad_y: Any, weight: Any, positions: Any, starts: Any, *rest: Any, **_: Any) -> int:
    return _product_flops(grad_y, *rest)


def _product_flops(vectors: Any, lora_A: Any, lora_B: Any, scale: float, seed: Any, slot: int) -> int:
    """Of a product with W' and of the merge before it, unless a kept W' was used; counted after the operator ran."""
    merging = lora_A[0] if effective_cache.last_use_merged(slot) else 0
    return int(2 * lora_B[0] * lora_A[1] * (math.prod(vectors[:-1]) + merging))
