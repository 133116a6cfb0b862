"""Wanda: score_ij = abs(W_ij) * norm(X_j), ranked within each output row; the kept weights do not change.

Sun et al. 2024, "A Simple and Effective Pruning Approach for Large Language Models", arXiv 2306.11695, Eq. 1. The
group of comparison is the output row (their section 3); N:M ranks within each M inputs of a row.
"""

from torch import Tensor

from lors_cli.sparsity.mask import keep_largest
from lors_cli.sparsity.pattern import Pattern


def prune(weight: Tensor, statistic: Tensor, pattern: Pattern) -> Tensor:
    """Zero the weights of `weight` (R, C) with the lowest score.

    Args:
        weight: (R, C).
        statistic: (C,), the L2 norm of each input feature over the calibration tokens, float32.
        pattern: what to leave.

    """
    # float32, because a product of bf16 numbers has ties that the published code does not have
    score = weight.to(statistic.dtype).abs() * statistic
    return weight.where(keep_largest(score, pattern, per_row=True), 0)
