"""LoRS as its paper lists it (arXiv 2501.08582, Listing 5), for comparison with `lors_cli.adapters.lors`.

Three passes over the weight build W' (``addmm``, ``!=``, ``mul``), in the weight's own precision, and W' exists as a
whole. The scale, which the listing leaves out of the gradients, is there; the bias is frozen. Under ``torch.compile``
this saves W' for the backward.
"""

from typing import Any

import torch
from torch import Tensor

from lors_cli.adapters.base import LowRankAdapter, low_rank_sum


class LoRSListing(LowRankAdapter):
    """The masked low-rank update with the paper's backward, as listed."""

    def forward(self, x: Tensor) -> Tensor:
        """X (..., C) to Y (..., R)."""
        y: Tensor = _Listing.apply(self._as_multiplied(x), self.linear.weight, self.lora_A, self.lora_B, self.scale)
        return y if self.linear.bias is None else y + self.linear.bias.to(y.dtype)

    def effective_weight(self, weight: Tensor) -> Tensor:
        """W + s (B A) * M, with W's support."""
        return low_rank_sum(weight, self.lora_A, self.lora_B, self.scale).where(weight != 0, 0)


def listed_weight(weight: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
    """W' (R, C) in three passes."""
    return weight.addmm(lora_B.to(weight.dtype), lora_A.to(weight.dtype), alpha=scale).mul_(weight != 0)


class _Listing(torch.autograd.Function):
    """Y = X W'^T, saving X, W, A and B."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(x, weight, lora_A, lora_B)
        ctx.scale = scale
        return x @ listed_weight(weight, lora_A, lora_B, scale).to(x.dtype).T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, lora_A, lora_B = ctx.saved_tensors
        grad_x = (
            grads[0] @ listed_weight(weight, lora_A, lora_B, ctx.scale).to(x.dtype) if ctx.needs_input_grad[0] else None
        )
        x, grad_y = x.reshape(-1, weight.shape[1]), grads[0].reshape(-1, weight.shape[0])
        grad_A = ctx.scale * ((grad_y @ lora_B.to(x.dtype)).T @ x).to(lora_A.dtype)
        grad_B = ctx.scale * (grad_y.T @ (x @ lora_A.to(x.dtype).T)).to(lora_B.dtype)
        return grad_x, None, grad_A, grad_B, None
