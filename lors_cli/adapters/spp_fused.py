"""SPP (see `lors_cli.adapters.spp`) with one product forward and two backward: ours, for the fairest comparison.

    forward     W' = W * (1 + s alpha beta)    Y = X W'^T
    backward    dX = dY W'                     G = (dY^T X) * W
                dalpha = s sum_rows(G * beta)  dbeta = s sum_columns(G * alpha)

The factor of each weight is its own, so unlike in LoRS dY^T X cannot be avoided. W' and G live only inside an operator.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from lors_cli.adapters.spp import SPP


class SPPFused(SPP):
    """SPP as one product with the effective weight (``formulation: merged``), which leaves no path for a dropout."""

    def forward(self, x: Tensor) -> Tensor:
        """X (..., C) to Y (..., R)."""
        x = self._as_multiplied(x)
        y: Tensor = torch.ops.lors.spp_linear(x, self.linear.weight, self.spp_alpha, self.spp_beta, self.scale)
        return y if self.linear.bias is None else y + self.linear.bias.to(y.dtype)


def _effective_weight(dtype: torch.dtype, weight: Tensor, alpha: Tensor, beta: Tensor, scale: float) -> Tensor:
    """W' (R, C), rounded once to `dtype`, that of what it is multiplied with."""
    factor = (alpha.repeat_interleave(len(weight) // len(alpha), dim=0) * beta).mul_(scale).add_(1)
    return factor.mul_(weight).to(dtype)


_FACTORS = "Tensor weight, Tensor alpha, Tensor beta, float scale"


@torch.library.custom_op("lors::spp_linear", mutates_args=(), schema=f"(Tensor x, {_FACTORS}) -> Tensor")
def _linear(x: Tensor, *factors: Any) -> Tensor:
    return F.linear(x, _effective_weight(x.dtype, *factors))


@torch.library.custom_op("lors::spp_input_grad", mutates_args=(), schema=f"(Tensor grad_y, {_FACTORS}) -> Tensor")
def _input_grad(grad_y: Tensor, *factors: Any) -> Tensor:
    return grad_y @ _effective_weight(grad_y.dtype, *factors)


@torch.library.custom_op(
    "lors::spp_factor_grads", mutates_args=(), schema=f"(Tensor grad_y, Tensor x, {_FACTORS}) -> (Tensor, Tensor)"
)
def _factor_grads(
    grad_y: Tensor, x: Tensor, weight: Tensor, alpha: Tensor, beta: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    rows, columns = weight.shape
    gradient = (grad_y.reshape(-1, rows).T @ x.reshape(-1, columns)).to(alpha.dtype).mul_(weight).mul_(scale)
    sliced = gradient.view(len(alpha), -1, columns)  # (r, R/r, C): the rows of W that each row of alpha serves
    grad_beta = (sliced * alpha[:, None]).sum(dim=2).view(rows, 1)
    return (sliced.mul_(beta.view(len(alpha), -1, 1))).sum(dim=1), grad_beta


@_linear.register_fake
def _(x: Tensor, weight: Tensor, *_: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@_input_grad.register_fake
def _(grad_y: Tensor, weight: Tensor, *_: Any) -> Tensor:
    return grad_y.new_empty(*grad_y.shape[:-1], weight.shape[1])


@_factor_grads.register_fake
def _(grad_y: Tensor, x: Tensor, weight: Tensor, alpha: Tensor, beta: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(alpha), torch.empty_like(beta)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, alpha, beta = ctx.saved_tensors
    grad_x = grad_alpha = grad_beta = None
    if ctx.needs_input_grad[0]:
        grad_x = torch.ops.lors.spp_input_grad(grad_y, weight, alpha, beta, ctx.scale)
    if ctx.needs_input_grad[2] or ctx.needs_input_grad[3]:
        grad_alpha, grad_beta = torch.ops.lors.spp_factor_grads(grad_y, x, weight, alpha, beta, ctx.scale)
    return grad_x, None, grad_alpha, grad_beta, None


_linear.register_autograd(_backward, setup_context=_save)


@register_flop_formula([torch.ops.lors.spp_linear, torch.ops.lors.spp_input_grad])
def _flops(vectors: Any, weight: Any, *_: Any, **__: Any) -> int:
    """One product with a weight (R, C)."""
    return int(2 * math.prod(vectors[:-1]) * math.prod(weight))


@register_flop_formula(torch.ops.lors.spp_factor_grads)
def _factor_flops(grad_y: Any, x: Any, weight: Any, *_: Any, **__: Any) -> int:
    return _flops(grad_y, weight)
