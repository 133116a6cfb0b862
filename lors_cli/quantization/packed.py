"""Quantised weights in memory: their codes, without those of zeros where that is smaller.

The layouts are those of `lors_cli.sparsity.packed`, with scale and zero point beside them. Codes of at most four bits
stand two a byte; at 50 % of zeros, groups of 128 and 16-bit scales they take these bits a weight (R, C):

    layout     values, uint8                    positions and starts    all
    dense      (R, ceil(C/2))                   none                    4.13
    2:4        (R, C/4)                         1 bit                   3.13
    bitmask    (ceil(kept/2),), row after row   1.13 bits               3.25

Such a code is stored as ``code + 8``, the first of two in the lower half of their byte. Codes of more bits are int8,
one a byte. What is left out is zero, the code of which is its group's zero point.
"""

from contextlib import suppress
from typing import cast

import torch
from torch import Tensor

from lors_cli.quantization.grid import Grid, Scales, values
from lors_cli.quantization.stored import Quantized
from lors_cli.sparsity.packed import SPAN, Stored, kept_rows, pack_kept

HALF = 4  # bits, up to which a code takes half a byte
OFFSET = 8


def pack(quantized: Quantized, layout: str | None = None) -> Stored:
    """Pack a weight: as 2:4 if it fits, else in the smaller one of the other layouts, if none is named.

    Raises:
        ValueError: it does not fit the layout.

    """
    codes, kept = quantized.codes, quantized.mask()
    if layout is None:
        with suppress(ValueError):
            return _with_scales(pack_kept(codes, kept, "2:4"), quantized)
        width = HALF if quantized.grid.bits <= HALF else 8
        sparse = width * int(kept.sum()) + codes.numel() * (1 + 32 / SPAN) < width * codes.numel()
        layout = "bitmask" if sparse else "dense"
    return _with_scales(Stored(codes) if layout == "dense" else pack_kept(codes, kept, layout), quantized)


def bytes_per_weight(grid: Grid, scale: torch.dtype) -> float:
    """What a weight with 50 % of zeros takes as 2:4, with its share of the scales, which have the dtype `scale`."""
    a_group = scale.itemsize + (0 if grid.symmetric else 1)
    return 3 / 8 + a_group / grid.group_size


def weight_rows(stored: Stored, shape: tuple[int, int], first: int, end: int, dtype: torch.dtype) -> Tensor:
    """Rows `first` to `end` (excluded) of a quantised weight (R, C), in `dtype`."""
    return values(codes_rows(stored, shape, first, end), scales_rows(stored, first, end), dtype)


def codes_rows(stored: Stored, shape: tuple[int, int], first: int, end: int) -> Tensor:
    """The codes, int8, in rows `first` to `end` (excluded) of a quantised weight (R, C)."""
    packed, positions, starts, _, zero_point = stored
    if positions is None:
        return _codes(packed[first:end])[:, : shape[1]]
    kept = kept_rows(stored, shape, first, end)
    begin, a_byte = int(starts[first, 0]) if starts is not None and first else 0, 1 if packed.dtype == torch.int8 else 2
    ours = packed[first:end] if starts is None else packed[begin // a_byte :]
    codes = _codes(ours).reshape(-1)[begin % a_byte :]
    if zero_point is None:
        zeros = codes.new_zeros(kept.shape)
    else:
        zeros = zero_point[first:end].repeat_interleave(shape[1] // zero_point.shape[1], dim=1)
    return zeros.masked_scatter_(kept, codes)


def scales_rows(stored: Stored, first: int, end: int) -> Scales:
    """The scales of rows `first` to `end` (excluded)."""
    scale, zero_point = cast(Tensor, stored.scale), stored.zero_point
    return Scales(scale[first:end], None if zero_point is None else zero_point[first:end])


def _with_scales(stored: Stored, quantized: Quantized) -> Stored:
    """The packed codes, int8, as they are kept, and with their scales."""
    packed = stored.values
    if quantized.grid.bits <= HALF:
        halves = torch.nn.functional.pad((packed + OFFSET).to(torch.uint8), (0, packed.shape[-1] % 2))
        packed = halves[..., ::2] | halves[..., 1::2] << 4
    return Stored(packed, stored.positions, stored.starts, quantized.scale, quantized.zero_point)


def _codes(packed: Tensor) -> Tensor:
    """The codes in bytes of one or two, one after the other."""
    if packed.dtype == torch.int8:
        return packed
    return torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2).to(torch.int8) - OFFSET
