"""LoRAM's masked update on the original: W' = W0 + s (B A) * M, M the mask of the model that was trained.

Zhang et al. 2025, "Train Small, Infer Large: Memory-Efficient LoRA Training for Large Language Models", arXiv
2502.13533, section 3.2 and Algorithm 1, line 19, for pruning that leaves the shapes as they are: W_P + s (B A) * M is
what was trained, and the same update is now added to the original, whose removed weights stay what they were. It is
not a low-rank product, so `lors merge` alone can use it.
"""

from typing import Any

import torch
from torch import Tensor, nn

from lors_cli.adapters.base import LowRankAdapter
from lors_cli.sparsity import mask


class LoRAM(LowRankAdapter):
    """The low-rank update with a mask of its own, which the weight does not tell; it is not trained."""

    parameter_names = ("lora_A", "lora_B", "mask")
    bit_names = ("mask",)

    def __init__(self, linear: nn.Linear, **options: Any) -> None:
        super().__init__(linear, **options)
        shape = self.shapes(*self.shape, self.rank)["mask"]
        bits = torch.zeros(shape, dtype=torch.uint8, device=linear.weight.device)
        self.mask = nn.Parameter(bits, requires_grad=False)

    @classmethod
    def shapes(cls, out_features: int, in_features: int, rank: int) -> dict[str, tuple[int, int]]:
        """lora_A (rank, C), lora_B (R, rank), and the mask in bits, (R, C / 8 rounded up)."""
        low_rank = super().shapes(out_features, in_features, rank)
        return {**low_rank, "mask": (out_features, mask.bytes_of(in_features))}

    def effective_weight(self, weight: Tensor) -> Tensor:
        """W0 + s (B A) * M; where M is zero, W0 bit for bit."""
        kept = mask.from_bits(self.mask, weight.shape[1])
        update = torch.where(kept, self.lora_B @ self.lora_A, 0)
        return torch.where(kept, (weight.to(update.dtype) + self.scale * update).to(weight.dtype), weight)
