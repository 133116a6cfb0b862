"""OWL: how many outliers a block has among its scores.

Yin et al. 2024, "Outlier Weighed Layerwise Sparsity (OWL): A Missing Secret Sauce for Pruning LLMs to High Sparsity",
ICML 2024, arXiv 2310.05175, Eq. 1: the share of the Wanda scores of all linears of a block that exceed M times their
mean. It is taken on the dense model, before anything is pruned.
"""

from typing import Any

import torch
from torch import nn

from lors_cli.sequential.gather import Input
from lors_cli.sequential.recipe import PROFILE_STATISTIC


@torch.no_grad()
def outliers(linears: dict[str, nn.Linear], inputs: list[Input], times: float) -> dict[str, Any]:
    """The share of outliers among the scores ``abs(W_ij) * norm(X_j)`` of a block, each linear's norms per token."""
    scores = []
    for shared in inputs:
        norms = shared.statistics[PROFILE_STATISTIC].value()
        scores += [linears[name].weight.float().abs() * norms for name in shared.linears]
    total, count = sum(float(score.sum(dtype=torch.float64)) for score in scores), sum(s.numel() for s in scores)
    bound = total / count * times
    return {"outliers": sum(int((score > bound).sum()) for score in scores) / count}
