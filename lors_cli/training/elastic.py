"""Elastic ranks: which part of each adapter a step trains (NLS, neural low-rank adapter search).

Munoz et al. 2024, "SQFT", arXiv 2410.03750, section 3.1, after "Shears", arXiv 2404.10934: an adapter of the largest
rank holds those of all others, as its first rows of lora_A and columns of lora_B. A step draws a rank for each linear,
each as likely as any other, and the scale alpha / rank stays that of the largest.

Sandwich: of three steps one trains the largest rank everywhere, one the smallest, and one draws. The rule of Yu and
Huang 2019, arXiv 1903.05134, has all three in one step; here a step costs what it costs otherwise.
"""

import random
from collections.abc import Iterable, Sequence

from lors_cli.adapters.base import Adapter, LowRankAdapter


def draw(adapters: Iterable[Adapter], ranks: Sequence[int], seed: int, step: int, *, sandwich: bool = False) -> None:
    """Give each adapter one of the `ranks` for a step, the same in every process and after a resumption."""
    numbers = random.Random(f"{seed} {step}")
    if sandwich and step % 3 < 2:
        ranks = [min(ranks) if step % 3 else max(ranks)]
    for adapter in adapters:
        if isinstance(adapter, LowRankAdapter):
            adapter.active_rank = numbers.choice(ranks)
