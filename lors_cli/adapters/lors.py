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
"""

from typing import Any

import torch
from torch import Tensor

from lors_cli.adapters.base import LowRankAdapter, low_rank_sum


class LoRS(LowRankAdapter):
    """The masked low-rank update with the paper's backward."""

    def forward(self, x: Tensor) -> Tensor:
        """X (..., C) to Y (..., R)."""
        y: Tensor = _LoRSLinear.apply(x, self.linear.weight, self.lora_A, self.lora_B, self.scale)
        return y if self.linear.bias is None else y + self.linear.bias

    def merged_weight(self, weight: Tensor) -> Tensor:
        """W + s (B A) * M, with W's support."""
        return masked_low_rank_sum(weight, self.lora_A, self.lora_B, self.scale)


def masked_low_rank_sum(weight: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
    """``where(W != 0, W + s B A, 0)``, (R, C)."""
    return low_rank_sum(weight, lora_A, lora_B, scale).where(weight != 0, 0)


class _LoRSLinear(torch.autograd.Function):
    """Y = X W'^T, saving X, W, A and B."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(x, weight, lora_A, lora_B)
        ctx.scale = scale
        return x @ masked_low_rank_sum(weight, lora_A, lora_B, scale).T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, Tensor | None, Tensor | None, None]:
        x, weight, lora_A, lora_B = ctx.saved_tensors
        grad_y = grads[0].reshape(-1, weight.shape[0])
        grad_x = grad_A = grad_B = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad_y @ masked_low_rank_sum(weight, lora_A, lora_B, ctx.scale)).reshape(x.shape)
        x = x.reshape(-1, weight.shape[1])
        if ctx.needs_input_grad[2]:
            grad_A = ctx.scale * ((grad_y @ lora_B.to(grad_y.dtype)).T @ x).to(lora_A.dtype)
        if ctx.needs_input_grad[3]:
            grad_B = ctx.scale * (grad_y.T @ (x @ lora_A.to(x.dtype).T)).to(lora_B.dtype)
        return grad_x, None, grad_A, grad_B, None
