"""Masks of weights (out, in): choosing what is kept, and reading back what a weight holds.

The mask of a sparse weight is its support, ``weight != 0``; True means kept. Nothing else records it.
"""

import numpy as np
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
    if removed == 0:
        return torch.ones_like(score, dtype=torch.bool)
    keep = _largest_of_few(competing, removed) if pattern.m else _largest_of_many(competing, removed)
    return keep.view(rows, columns)


def _largest_of_many(score: Tensor, removed: int) -> Tensor:
    """All but the `removed` smallest of each row, by the score that divides them: much faster than a sort."""
    bound = score.kthvalue(removed, dim=1, keepdim=True).values
    keep = score > bound
    room = score.shape[1] - removed - keep.sum(dim=1, keepdim=True)
    if bool(room.any()):  # scores tie with the one that divides
        tied = score == bound
        keep |= tied & (tied.cumsum(dim=1) <= room)
    return keep


def _largest_of_few(score: Tensor, removed: int) -> Tensor:
    """The largest of short rows, by counting the places ahead of each place; in bytes, place by place."""
    places = [score[:, place].contiguous() for place in range(score.shape[1])]
    keep = torch.empty_like(score, dtype=torch.bool)
    for i, own in enumerate(places):
        ahead = torch.zeros_like(own, dtype=torch.uint8)
        for j, other in enumerate(places):
            if j != i:
                ahead += (other >= own if j < i else other > own).view(torch.uint8)
        keep[:, i] = ahead < len(places) - removed
    return keep


def holds(weight: Tensor, pattern: Pattern, slack: float = 0.0) -> bool:
    """Whether `weight` (R, C) has at most N nonzeros in every M inputs of each row, or the fraction of zeros.

    A fraction is met when each row's share of removed weights was rounded down to whole weights; `slack` is allowed
    below that.
    """
    if pattern.m is None:
        return sparsity(weight) > pattern.sparsity - 1 / weight.shape[1] - slack
    return weight.shape[1] % pattern.m == 0 and _fullest(weight, pattern.m) <= (pattern.n or 0)


def _fullest(weight: Tensor, m: int) -> int:
    """The largest number of nonzeros in `m` consecutive inputs of a row."""
    # bytes, added column by column: a sum over so short a dimension is many times slower
    groups = (weight != 0).view(torch.uint8).view(-1, m)
    counts = groups[:, 0].clone()
    for column in range(1, m):
        counts += groups[:, column]
    return int(counts.max())


def detect(weight: Tensor) -> str:
    """The tightest common N:M that `weight` (R, C) holds; else "unstructured", or "dense" with under 1% of zeros.

    The support ``weight != 0`` gives the same.
    """
    if sparsity(weight) < DENSE_BELOW:
        return "dense"
    fullest = _fullest_of_all(weight)
    for text in COMMON_PATTERNS:
        pattern = Pattern.parse(text)
        if pattern.m in fullest and fullest[pattern.m] <= (pattern.n or 0):
            return text
    return "unstructured"


def _fullest_of_all(weight: Tensor) -> dict[int, int]:
    """The same for each power of two that divides the columns, up to 32, each from the counts of the one before."""
    counts, fullest = (weight != 0).view(torch.uint8).flatten(), {}
    for m in (2, 4, 8, 16, 32):
        if weight.shape[1] % m:
            break
        counts = counts[::2] + counts[1::2]
        fullest[m] = int(counts.max())
    return fullest


def held_by(weight: Tensor) -> Pattern:
    """The pattern that `weight` (R, C) holds: a common N:M, or its fraction of zeros."""
    pattern = detect(weight)
    return Pattern.parse(pattern) if ":" in pattern else Pattern(sparsity(weight))


def zeros(weight: Tensor) -> int:
    """How many zeros there are."""
    return weight.numel() - int(torch.count_nonzero(weight))


def sparsity(weight: Tensor) -> float:
    """The fraction of zeros."""
    return 1 - int(torch.count_nonzero(weight)) / weight.numel()


def negative_zeros(weight: Tensor) -> int:
    """How many zeros carry a minus sign. A pruned weight is +0.0, so that equal models are equal bytes."""
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[weight.element_size()]
    return int(torch.count_nonzero(weight.view(bits) == torch.iinfo(bits).min))  # -0.0: the sign bit alone


def finite(weight: Tensor) -> bool:
    """Whether all numbers are finite, which the smallest and the largest tell."""
    low, high = weight.aminmax()
    return bool(low.isfinite() & high.isfinite())


def positive_zeros(weight: Tensor) -> Tensor:
    """The same values with every -0.0 turned into +0.0 (IEEE 754: -0.0 + 0.0 = +0.0)."""
    return weight + 0.0


def bytes_of(columns: int) -> int:
    """How many bytes a row of a mask takes in bits."""
    return (columns + 7) // 8


def to_bits(kept: Tensor) -> Tensor:
    """A mask, bool (R, C), as uint8 (R, C / 8 rounded up): the first column is the highest bit of the first byte."""
    return torch.from_numpy(np.packbits(kept.cpu().numpy(), axis=1))


def from_bits(bits: Tensor, columns: int) -> Tensor:
    """The mask, bool (R, `columns`), that `to_bits` made these of."""
    unpacked = np.unpackbits(bits.detach().cpu().numpy(), axis=1, count=columns)
    return torch.from_numpy(unpacked).view(torch.bool).to(bits.device)
