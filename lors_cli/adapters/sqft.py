"""SQFT (SparsePEFT): W' = W + s (B A) * M with M = (W != 0), by ordinary autograd.

Munoz et al. 2024, "SQFT: Low-cost Model Adaptation in Low-precision Sparse Foundation Models", arXiv 2410.03750.
Autograd masks the gradient of the update and keeps W' and M for backward (three bytes a weight in bf16);
with ``adapter_checkpointing`` they are computed again instead (the "SQFT-gc" of the LoRS paper), and on codes always:
kept, they would take several times what the codes do.

QA-SparsePEFT puts W' on the grid of W, and the gradient goes straight through that. W is what the codes stand for; the
authors' program adds the update to the weights before quantisation instead, which are then needed beside the codes.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lors_cli.adapters.base import LowRankAdapter
from lors_cli.adapters.effective_weight import EffectiveWeight
from lors_cli.adapters.packed_linear import PackedLinear


class SQFT(LowRankAdapter):
    """The masked low-rank update, added to the weight before the product with X.

    Args:
        linear: also an `Int4Linear`.
        quantization_aware: put W' on the grid of W, which is an `Int4Linear`'s.
        options: of every adapter.

    """

    bases = ("dense", "int4")

    def __init__(self, linear: Any, *, quantization_aware: bool = False, **options: Any) -> None:
        super().__init__(linear, **options)
        self.bits: int = linear.grid.bits if quantization_aware else 0
        if isinstance(linear, PackedLinear):
            self.adapter_checkpointing = self.adapter_checkpointing or True

    def forward(self, x: Tensor) -> Tensor:
        """X (..., C) to Y (..., R)."""
        return self._checkpointed(self._forward, x)

    def _forward(self, x: Tensor) -> Tensor:
        if not isinstance(self.linear, PackedLinear):
            return F.linear(x, self.effective_weight(self.linear.weight), self.linear.bias)
        effective = self.effective_weight(self.linear.dense_weight())
        if self.bits:
            factors = (factor.detach() for factor in self.factors)
            on_grid = EffectiveWeight(self.linear.stored, *factors, self.scale, None, self.dtype, bits=self.bits)
            effective = _StraightThrough.apply(effective, on_grid.make())
        return F.linear(x, effective, self.linear.bias)

    def effective_weight(self, weight: Tensor) -> Tensor:
        """W + s (B A) * M, with W's support."""
        lora_A, lora_B = self.factors
        update = (lora_B @ lora_A) * (weight != 0)
        return (weight.to(update.dtype) + self.scale * update).to(weight.dtype)


class _StraightThrough(torch.autograd.Function):
    """The second tensor, whose gradient is the first one's."""

    @staticmethod
    def forward(ctx: Any, exact: Tensor, rounded: Tensor) -> Tensor:
        return rounded

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None
