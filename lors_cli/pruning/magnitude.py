"""Magnitude pruning: score = abs(W).

Han et al. 2015, "Learning both Weights and Connections for Efficient Neural Networks", arXiv 1506.02626. The whole
matrix is ranked together, as in the baseline of the Wanda and SparseGPT papers.
"""

from torch import Tensor

from lors_cli.sparsity.mask import keep_largest
from lors_cli.sparsity.pattern import Pattern


def prune(weight: Tensor, statistic: None, pattern: Pattern) -> Tensor:
    """Zero the smallest weights of `weight` (R, C); needs no calibration."""
    return weight.where(keep_largest(weight.abs(), pattern, per_row=False), 0)
