"""Quantised weights as they are kept and copied: the codes that are not zero, and where they stand.

    layout     values, int32                               positions, uint8
    2:4        (R, words), two codes of each four          (R, ceil(C/8))
    bitmask    (1, words), the kept codes row after row    (R, ceil(C/8))

The positions are those of `lors_cli.sparsity.packed`, and the values streams of bits as `stored` has them: at 50 % of
zeros four bits a weight become three. What is left out is zero, whose code is the group's zero point.
"""

from contextlib import suppress
from typing import NamedTuple

import torch
from torch import Tensor

from lors_cli.quantization import stored
from lors_cli.quantization.grid import Grid
from lors_cli.quantization.stored import Quantized
from lors_cli.sparsity.packed import Stored, kept_rows, pack_kept, starts_of


class Kept(NamedTuple):
    """The codes of a weight in one of the layouts."""

    layout: str
    values: Tensor
    positions: Tensor


def pack(quantized: Quantized, layout: str | None = None) -> Kept | None:
    """The codes without those of zeros, in the smaller layout if none is named; None if that is not smaller.

    Raises:
        ValueError: it is smaller, but they do not fit the layout.

    """
    rows, columns = quantized.codes.shape
    bitmask = _packed(quantized, "bitmask")
    if _size(bitmask) >= 4 * rows * stored.words(columns, quantized.grid.bits):
        return None
    if layout == "2:4":
        return _packed(quantized, layout)
    with suppress(ValueError):  # it does not fit 2:4
        if layout is None and _size(pairs := _packed(quantized, "2:4")) <= _size(bitmask):
            return pairs
    return bitmask


def codes_of(kept: Kept, shape: tuple[int, int], grid: Grid, zero_point: Tensor | None) -> Tensor:
    """The codes, int8 of `shape`, that were packed; `zero_point` (R, G) is that of their groups."""
    layout, values, positions = kept
    starts = None if layout == "2:4" else starts_of(positions, shape[1])
    among = kept_rows(Stored(values, positions, starts), shape, 0, shape[0])
    count = shape[1] // 2 if layout == "2:4" else int(among.sum())
    codes = stored.unpack(values, grid.bits, count).flatten()
    zeros = torch.zeros(shape, dtype=torch.int8)
    if zero_point is not None:
        zeros = zero_point.repeat_interleave(grid.group_size, dim=1)
    return zeros.masked_scatter_(among, codes)


def _packed(quantized: Quantized, layout: str) -> Kept:
    packed = pack_kept(quantized.codes, quantized.mask(), layout)
    if packed.positions is None:
        raise ValueError(f"{layout} has no positions")
    values = packed.values if layout == "2:4" else packed.values[None]
    return Kept(layout, stored.pack(values, quantized.grid.bits), packed.positions)


def _size(kept: Kept) -> int:
    return kept.values.nbytes + kept.positions.nbytes
