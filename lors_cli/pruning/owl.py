"""OWL: blocks with more outliers among their scores lose fewer weights.

Yin et al. 2024, "Outlier Weighed Layerwise Sparsity (OWL): A Missing Secret Sauce for Pruning LLMs to High Sparsity",
ICML 2024, arXiv 2310.05175. The share d_b of outliers in block b (Eq. 1) is that of the Wanda scores of all its linears
that exceed M times their mean, on the dense model. The shares are scaled to a range of 2 lambda, and block b gets the
sparsity ``S + mean(d) - d_b`` (section 3.2).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lors_cli.errors import LorsError


@torch.no_grad()
def share(weights: Sequence[Tensor], statistics: Sequence[Tensor], *, profile_outlier: float = 5.0) -> float:
    """The share of outliers among the scores ``abs(W_ij) * norm(X_j)`` of a block.

    Args:
        weights: (R, C) of each linear.
        statistics: (C,) for each linear, the L2 norm of each input feature over the calibration tokens, float32.
        profile_outlier: M.

    """
    scores = [weight.float().abs() * norms for weight, norms in zip(weights, statistics, strict=True)]
    count = sum(score.numel() for score in scores)
    bound = sum(float(score.sum(dtype=torch.float64)) for score in scores) / count * profile_outlier
    return sum(int((score > bound).sum()) for score in scores) / count


def spread(shares: list[float], sizes: list[int], sparsity: float, *, profile_range: float = 0.08) -> list[float]:
    """The sparsity of each block; over all the weights that follow the profile it is the asked one.

    The paper's mean is that of the blocks. Here it is weighted by `sizes`, so that the asked sparsity is met also
    where the blocks are unequal; with equal ones it is the published one.

    Args:
        shares: of each block.
        sizes: how many weights of each block follow the profile; 0 for a block that does not.
        sparsity: S.
        profile_range: lambda.

    Raises:
        LorsError: a block would have to lose less than nothing or everything.

    """
    low, high = min(shares), max(shares)
    scaled = [(one - low) / (high - low) * 2 * profile_range if high > low else 0.0 for one in shares]
    mean = sum(one * size for one, size in zip(scaled, sizes, strict=True)) / sum(sizes)
    levels = [sparsity + mean - one for one in scaled]
    for block, (level, size) in enumerate(zip(levels, sizes, strict=True)):
        if size and not 0 < level < 1:
            raise LorsError(
                f"the profile cannot reach a mean sparsity of {sparsity}: block {block} would get {level:.3f};"
                " lower prune.profile_range, or ask for another sparsity"
            )
    return levels
