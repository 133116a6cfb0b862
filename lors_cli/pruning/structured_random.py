"""The parts that go are drawn at random.

Zhang et al. 2025, "Train Small, Infer Large: Memory-Efficient LoRA Training for Large Language Models", ICLR 2025,
arXiv 2502.13533: their LoRAM-Rand.
"""

from collections.abc import Sequence

import torch

from lors_cli.pruning.structured import Member


def keep(members: Sequence[Member], count: int, left: int, generator: torch.Generator) -> list[int]:
    """The numbers, rising, of the `left` of `count` parts that stay, whatever is in the `members`."""
    return sorted(torch.randperm(count, generator=generator)[count - left :].tolist())
