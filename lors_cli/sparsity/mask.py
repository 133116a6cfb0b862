"""Masks of weights (out, in): choosing what is kept, and reading back what a weight holds.

The mask of a sparse weight is its support, ``weight != 0``; True means kept. Nothing else records it.
"""

import torch
from torch import Tensor

from lors_cli.sparsity.pattern import Pattern

# The patterns that `detect` looks for, tightest first.
COMMON_PATTERNS = ("1:8", "1:4", "2:8", "1:2", "2:4", "4:8", "8:16", "16:32", "3:4", "6:8")
# Trained and dequantised weights hold a few exact zeros by chance; a weight with fewer than this was not pruned.
DENSE_BELOW = 0.01


def keep_largest(score: Tensor, pattern: Pattern, *, per_row: bool) -> Tensor:
    """Choose what to keep by score.

    Args:
        score: (R, C), larger is more important.
        pattern: N:M keeps N in each group of M consecutive columns; a fraction removes ``floor(fraction * n)`` of
            the n scores that compete.
        per_row: for a fraction, whether each row is ranked by itself or all scores of the matrix together.

    Returns:
        bool (R, C), True where kept. Ties go to the earlier position, so the count is exact and the same everywhere.

    """
    rows, columns = score.shape
    if pattern.n is not None and pattern.m is not None:
        competing, removed = score.reshape(-1, pattern.m), pattern.m - pattern.n
    else:
        competing = score if per_row else score.reshape(1, -1)
        # 1e-9 undoes binary fractions such as 100 * 0.29 = 28.999999999999996
        removed = int(competing.shape[1] * pattern.sparsity + 1e-9)
    # Sorted downwards and stable, the removed ones are the last of the order, and of equals the later.
    order = competing.sort(dim=1, descending=True, stable=True).indices
    keep = torch.ones_like(competing, dtype=torch.bool)
    keep.scatter_(1, order[:, competing.shape[1] - removed :], False)
    return keep.reshape(rows, columns)


def holds(weight: Tensor, pattern: Pattern) -> bool:
    """Whether `weight` (R, C) has at most N nonzeros in every M inputs of each row, or the fraction of zeros.

    A fraction is met when each row's share of removed weights was rounded down to whole weights.
    """
    if pattern.n is None or pattern.m is None:
        return sparsity(weight) > pattern.sparsity - 1 / weight.shape[1]
    if weight.shape[1] % pattern.m:
        return False
    return int((weight != 0).reshape(-1, pattern.m).sum(dim=1).max()) <= pattern.n


def detect(weight: Tensor) -> str:
    """The tightest common N:M that `weight` (R, C) holds; else "unstructured", or "dense" with under 1% of zeros."""
    if sparsity(weight) < DENSE_BELOW:
        return "dense"
    return next((p for p in COMMON_PATTERNS if holds(weight, Pattern.parse(p))), "unstructured")


def sparsity(weight: Tensor) -> float:
    """The fraction of zeros."""
    return 1 - int(torch.count_nonzero(weight)) / weight.numel()


def negative_zeros(weight: Tensor) -> int:
    """How many zeros carry a minus sign. A pruned weight is +0.0, so that equal models are equal bytes."""
    return int(torch.signbit(weight[weight == 0]).sum())


def positive_zeros(weight: Tensor) -> Tensor:
    """The same values with every -0.0 turned into +0.0 (IEEE 754: -0.0 + 0.0 = +0.0)."""
    return weight + 0.0
