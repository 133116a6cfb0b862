"""Wanda: score_ij = abs(W_ij) * norm(X_j), ranked within each output row; the kept weights do not change.

Sun et al. 2024, "A Simple and Effective Pruning Approach for Large Language Models", arXiv 2306.11695, Eq. 1. The
group of comparison is the output row (their section 3); N:M ranks within each M inputs of a row. Their variant (the
published code's ``use_variant``) removes from each row the smallest scores that sum up to at most a share alpha of the
row's sum, with the one alpha that brings the matrix to the asked sparsity.
"""

import torch
from torch import Tensor

from lors_cli.errors import LorsError
from lors_cli.sparsity.mask import keep_largest
from lors_cli.sparsity.pattern import Pattern

TOLERANCE = 0.001  # how far from the sparsity the variant may stop, as published
BISECTIONS = 60  # alpha is then exact in float64


def prune(weight: Tensor, statistic: Tensor, pattern: Pattern, *, variant: bool = False) -> Tensor:
    """Zero the weights of `weight` (R, C) with the lowest score.

    Args:
        weight: (R, C).
        statistic: (C,), the L2 norm of each input feature over the calibration tokens, float32.
        pattern: what to leave.
        variant: whether rows differ in how many weights they lose, by their sums of scores; the sparsity of the
            matrix is then within 0.001 of the asked one, or the next smaller one if the matrix has none within.

    Raises:
        LorsError: the variant was asked for with N:M.

    """
    # float32, because a product of bf16 numbers has ties that the published code does not have
    score = weight.to(statistic.dtype).abs() * statistic
    if not variant:
        return weight.where(keep_largest(score, pattern, per_row=True), 0)
    if pattern.m:
        raise LorsError(f"Wanda's variant chooses how many weights a row loses, which {pattern} fixes; use a fraction")
    return weight.where(_keep_above_share(score, pattern.sparsity), 0)


def _keep_above_share(score: Tensor, sparsity: float) -> Tensor:
    """What the variant keeps of `score` (R, C), bool.

    The path of alpha is the published one. What differs: that code reads past the end where not even the smallest
    score of a row fits, which removes nothing here; it removes all scores equal to the largest removed one, where
    here, as elsewhere, the later go first; and it gives up once the bracket is 0.001 wide, though the sparsity may
    still be far off.
    """
    downwards = score.sort(dim=1, descending=True, stable=True)
    order = downwards.indices.flip(1)
    cumulative, total = downwards.values.flip(1).cumsum(dim=1), score.sum(dim=1, keepdim=True)

    def removals(alpha: float) -> Tensor:  # for each row, (R, 1)
        return (cumulative <= total * alpha).sum(dim=1, keepdim=True)

    def reached(alpha: float) -> float:
        return int(removals(alpha).sum()) / score.numel()

    low, alpha, high = 0.0, 0.4, 0.8
    if reached(high) < sparsity - TOLERANCE:  # rows of a few large scores: the published bracket is too narrow
        high = 1.0
    for _ in range(BISECTIONS):
        excess = reached(alpha) - sparsity
        if abs(excess) <= TOLERANCE:
            break
        low, high = (low, alpha) if excess > 0 else (alpha, high)
        alpha = (low + high) / 2
    else:
        alpha = low  # a small matrix, or many equal scores: rounded down, as a fraction always is
    rank = torch.arange(score.shape[1], device=score.device)
    return torch.empty_like(score, dtype=torch.bool).scatter_(1, order, rank >= removals(alpha))
