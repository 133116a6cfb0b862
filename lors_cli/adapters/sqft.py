"""SQFT (SparsePEFT): W' = W + s (B A) * M with M = (W != 0), by ordinary autograd.

Munoz et al. 2024, "SQFT: Low-cost Model Adaptation in Low-precision Sparse Foundation Models", arXiv 2410.03750.
Autograd masks the gradient of the update and keeps W' and M for backward (three bytes a weight in bf16);
with ``adapter_checkpointing`` they are computed again instead (the "SQFT-gc" of the LoRS paper).
"""

from torch import Tensor
from torch.nn import functional as F

from lors_cli.adapters.base import LowRankAdapter


class SQFT(LowRankAdapter):
    """The masked low-rank update, added to the weight before the product with X."""

    def forward(self, x: Tensor) -> Tensor:
        """X (..., C) to Y (..., R)."""
        return self._checkpointed(self._forward, x)

    def _forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.effective_weight(self.linear.weight), self.linear.bias)

    def effective_weight(self, weight: Tensor) -> Tensor:
        """W + s (B A) * M, with W's support."""
        update = (self.lora_B @ self.lora_A) * (weight != 0)
        return (weight.to(update.dtype) + self.scale * update).to(weight.dtype)
