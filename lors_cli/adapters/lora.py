"""LoRA: Y = X W^T + s (X A^T) B^T. The effective weight W + s B A is dense, whatever W was.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685. Here as the baseline: merged
into a sparse model it destroys the zeros, and masking it only at the merge is the "LoRA*" of the SPP paper.
"""

from torch import Tensor
from torch.nn import functional as F

from lors_cli.adapters.base import LowRankAdapter, low_rank_sum


class LoRA(LowRankAdapter):
    """The low-rank update as its own path beside the frozen linear."""

    bases = ("dense", "nf4", "int4")

    def forward(self, x: Tensor) -> Tensor:
        """X (..., C) to Y (..., R)."""
        lora_A, lora_B = self.factors
        hidden = F.linear(self.dropout(x), lora_A.to(x.dtype))
        y: Tensor = self.linear(x) + F.linear(hidden, lora_B.to(x.dtype)) * self.scale
        return y

    def effective_weight(self, weight: Tensor) -> Tensor:
        """W + s B A, dense."""
        return low_rank_sum(weight, *self.factors, self.scale)
