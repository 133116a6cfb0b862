"""SQFT (SparsePEFT): W' = W + s (B A) * M with M = (W != 0), by ordinary autograd.

Munoz et al. 2024, "SQFT: Low-cost Model Adaptation in Low-precision Sparse Foundation Models", arXiv 2410.03750.
Autograd masks the gradient of the update and keeps W' and M for backward (three bytes a weight in bf16);
with ``adapter_checkpointing`` they are computed again instead (the "SQFT-gc" of the LoRS paper).

On codes the products are those of LoRS, which keep X alone, and the gradients autograd's: dA and dB are masked, which
those of LoRS are not. What autograd makes of one weight would take several times what its codes do.

QA-SparsePEFT puts W' on the grid of W, and the gradient goes straight through that. W is what the codes stand for; the
authors' program adds the update to the weights before quantisation instead, which are then needed beside the codes.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lors_cli.adapters import effective_cache
from lors_cli.adapters.base import LowRankAdapter
from lors_cli.adapters.lors import Operands
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

    def forward(self, x: Tensor) -> Tensor:
        """X (..., C) to Y (..., R)."""
        if not isinstance(self.linear, PackedLinear):
            return self._checkpointed(self._forward, x)
        given = *self.linear.stored, *self.factors
        operands = Operands(*given, None, self.scale, effective_cache.NONE, self.bits, masked=True)
        y: Tensor = torch.ops.lors.linear(self._as_multiplied(x), self.linear.bias, *operands)
        return y

    def _forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.effective_weight(self.linear.weight), self.linear.bias)

    def effective_weight(self, weight: Tensor) -> Tensor:
        """W + s (B A) * M, with W's support."""
        lora_A, lora_B = self.factors
        update = (lora_B @ lora_A) * (weight != 0)
        return (weight.to(update.dtype) + self.scale * update).to(weight.dtype)
