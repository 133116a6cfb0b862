"""The grid of a quantised weight: whole numbers of a few bits, with a scale for each group of columns of each row.

    w = (code - zero_point) * scale,        low <= code <= high,     low = -2^(bits-1), high = 2^(bits-1) - 1

for a weight (R, C) in G = C / group_size groups of consecutive columns. ``scale`` is (R, G), in the dtype in which it
is stored; ``zero_point`` is (R, G), int8, or None for a symmetric grid, where it is 0. This is what compressed-tensors
calls int quantisation with the strategy "group". The range that a grid is fitted to always includes 0, and the zero
point is a code, so a weight of zero is its group's zero point exactly: pruned weights stay zeros on every grid.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

BITS = range(2, 9)


@dataclass(frozen=True)
class Grid:
    """A kind of grid.

    Attributes:
        bits: of a code.
        group_size: how many columns share a scale.
        symmetric: whether zero is always code 0, or each group has a zero point.

    Raises:
        ValueError: there is no such grid.

    """

    bits: int
    group_size: int
    symmetric: bool = True

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise ValueError(f"bits from {BITS[0]} to {BITS[-1]}, got {self.bits}")
        if self.group_size < 1:
            raise ValueError(f"a group_size of at least 1, got {self.group_size}")

    @property
    def low(self) -> int:
        """The smallest code."""
        return -(1 << self.bits - 1)

    @property
    def high(self) -> int:
        """The largest code."""
        return (1 << self.bits - 1) - 1

    def groups(self, columns: int) -> int:
        """How many groups there are.

        Raises:
            ValueError: the group size does not divide the columns.

        """
        if columns % self.group_size:
            raise ValueError(f"columns that the group size {self.group_size} divides, got {columns}")
        return columns // self.group_size


class Scales(NamedTuple):
    """Where a weight's grid lies."""

    scale: Tensor  # (R, G), positive
    zero_point: Tensor | None  # int8 (R, G); None stands for 0


def fit(weight: Tensor, grid: Grid, dtype: torch.dtype | None = None) -> Scales:
    """The grid from the smallest to the largest weight of each group, and zero.

    Symmetric grids put the largest absolute weight halfway between the last two codes of the longer, negative side,
    as compressed-tensors and the published GPTQ do: ``scale = max |w| / ((2^bits - 1) / 2)``.

    Args:
        weight: (R, C).
        grid: its kind.
        dtype: that the scales are rounded to and stored in; left out, that of the weight.

    """
    dtype = dtype or weight.dtype
    low, high = _precise(weight.unflatten(1, (grid.groups(weight.shape[1]), grid.group_size))).aminmax(dim=2)
    low, high = low.clamp(max=0), high.clamp(min=0)
    steps = 2**grid.bits - 1
    width = 2 * torch.maximum(-low, high) if grid.symmetric else high - low
    # A group of zeros has any scale. One that is too small for the dtype would be 0, and its weights infinitely many.
    scale = (width / steps).to(dtype).clamp(min=torch.finfo(dtype).tiny)
    if grid.symmetric:
        return Scales(scale, None)
    zero_point = (grid.low - low / scale.to(low.dtype)).round().clamp(grid.low, grid.high)
    return Scales(scale, zero_point.to(torch.int8))


def codes_of(weight: Tensor, scales: Scales, grid: Grid) -> Tensor:
    """The code of each weight, int8 (R, C): ``clamp(round(w / scale) + zero_point)``, ties to the even number."""
    scale, zero_point = scales
    grouped = _precise(weight.unflatten(1, (scale.shape[1], -1)))
    code = (grouped / scale[:, :, None].to(grouped.dtype)).round_()
    if zero_point is not None:
        code += zero_point[:, :, None]
    return code.clamp_(grid.low, grid.high).to(torch.int8).flatten(1)


def values(codes: Tensor, scales: Scales, dtype: torch.dtype) -> Tensor:
    """The weight (R, C) of these codes, computed in `dtype`, bit for bit as a model of that dtype has it.

    Args:
        codes: int8 (R, C).
        scales: of its groups.
        dtype: of the model that computes with it, to which compressed-tensors converts the scales before it multiplies.

    """
    scale, zero_point = scales
    value = codes.unflatten(1, (scale.shape[1], -1)).to(dtype)
    if zero_point is not None:
        value = value - zero_point[:, :, None].to(dtype)
    weight: Tensor = value * scale[:, :, None].to(dtype)
    return weight.flatten(1)


def _precise(weight: Tensor) -> Tensor:
    return weight if weight.dtype in (torch.float32, torch.float64) else weight.float()
