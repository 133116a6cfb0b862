"""Sparse weights (R, C) = (out, in) without their zeros. Both layouts take 9/16 of a dense bf16 weight at 50 % zeros.

    layout     values                          positions, uint8                      starts, int32
    dense      (R, C)                          none                                  none
    2:4        (R, C/2), two of each four      (R, ceil(C/8)), 4 bits a group of 4   none
    bitmask    (kept,), row after row          (R, ceil(C/8)), a bit a weight        (R, ceil(C/SPAN))

All rows are contiguous, so a range of rows is a range of each tensor. A group's four bits are the places of its two
values, the lower first; a group with fewer nonzeros has zeros among its values. Bit ``j % 8`` of byte ``j // 8`` is the
weight of column ``j``. ``starts`` says where in ``values`` each SPAN of columns begins; it follows from the positions.
What is kept is what has any bit set, so that -0.0 survives the round trip; the support is ``value != 0`` as everywhere.
"""

from contextlib import suppress
from functools import lru_cache
from itertools import combinations
from typing import Any, NamedTuple

import torch
from torch import Tensor

SPAN = 256  # columns: the width of a tile of the fused kernel
LAYOUTS = ("2:4", "bitmask")


class Stored(NamedTuple):
    """A weight in one of the layouts. With a scale its values are codes, as `lors_cli.quantization.packed` has them."""

    values: Tensor
    positions: Tensor | None = None
    starts: Tensor | None = None
    scale: Tensor | None = None
    zero_point: Tensor | None = None

    @property
    def layout(self) -> str:
        """``dense``, ``2:4`` or ``bitmask``."""
        return "dense" if self.positions is None else "2:4" if self.starts is None else "bitmask"

    @property
    def bytes(self) -> int:
        """The bytes of all tensors."""
        return sum(tensor.numel() * tensor.itemsize for tensor in self if tensor is not None)


def pack(weight: Tensor, layout: str | None = None) -> Stored:
    """Pack `weight` (R, C), in the smaller layout if none is named.

    Raises:
        ValueError: it does not fit 2:4, or holds more than 2^31 values.

    """
    kept = _bits(weight) != 0
    if layout is not None:
        return pack_kept(weight, kept, layout)
    # without their positions, which are as large: half of the values, or the kept ones and `starts`
    halves = weight.numel() * weight.itemsize // 2
    if int(kept.sum()) * weight.itemsize + 4 * _spans(weight) >= halves:
        with suppress(ValueError):  # it does not fit 2:4
            return _pack_24(weight, kept)
    return _pack_bitmask(weight, kept)


def pack_kept(weight: Tensor, kept: Tensor, layout: str) -> Stored:
    """Pack of `weight` (R, C), of any dtype, what is `kept`, bool (R, C); errors as in `pack`."""
    return _pack_24(weight, kept) if layout == "2:4" else _pack_bitmask(weight, kept)


def packed_bytes(weight: Tensor) -> int:
    """Bytes of `pack`'s result for a bitmask, which 2:4 does not exceed."""
    rows, columns = weight.shape
    return int(torch.count_nonzero(_bits(weight))) * weight.itemsize + rows * -(-columns // 8) + 4 * _spans(weight)


def smallest_sparsity(dtype: torch.dtype) -> float:
    """The fraction of zeros below which packing would make a weight larger: a bit each, and a share of ``starts``."""
    return (1 / 8 + 4 / SPAN) / dtype.itemsize


def unpack(stored: Stored, shape: tuple[int, int]) -> Tensor:
    """The weight (R, C) that `stored` was packed from, bit for bit."""
    return unpack_rows(stored, shape, 0, shape[0])


def unpack_rows(stored: Stored, shape: tuple[int, int], first: int, end: int) -> Tensor:
    """Rows `first` to `end` (excluded) of the weight; those of a dense one are a view."""
    values, positions, starts, *_ = stored
    if positions is None:
        return values[first:end]
    kept = kept_rows(stored, shape, first, end)
    ours = values[first:end] if starts is None else values[int(starts[first, 0]) :] if first else values
    return values.new_zeros(kept.shape).masked_scatter_(kept, ours)


def kept_rows(stored: Stored, shape: tuple[int, int], first: int, end: int) -> Tensor:
    """Where rows `first` to `end` (excluded) of a packed weight have values, bool."""
    positions: Any = stored.positions
    return _unpack_positions(positions[first:end], shape[1], stored.layout)


def starts_of(positions: Tensor, columns: int) -> Tensor:
    """``starts`` of a bitmask's `positions`, which have no bits beyond the columns.

    Raises:
        ValueError: there are more than 2^31 values.

    """
    rows = positions.shape[0]
    counts = torch.nn.functional.pad(_table("counts", positions.device)[positions.int()], (0, -positions.shape[1] % 32))
    ends = counts.view(-1, SPAN // 8).sum(dim=1).cumsum(dim=0)
    if int(ends[-1]) >= 2**31:
        raise ValueError("fewer than 2^31 kept values in one weight")
    return ends.roll(1).index_fill_(0, torch.zeros(1, dtype=torch.long, device=ends.device), 0).int().view(rows, -1)


def opened(values: Tensor, positions: Tensor, layout: str, shape: tuple[int, int]) -> Stored:
    """The packed weight (R, C) of tensors that a file gave: what reads it relies on what is checked here.

    Raises:
        ValueError: these are not the values and positions of a weight of this shape in this layout.

    """
    rows, columns = shape
    if positions.dtype != torch.uint8 or positions.shape != (rows, -(-columns // 8)):
        raise ValueError(f"positions of shape {tuple(positions.shape)} for a weight of shape {shape}")
    if layout == "2:4":
        if columns % 4 or values.shape != (rows, columns // 2):
            raise ValueError(f"values of shape {tuple(values.shape)} for a weight of shape {shape} in 2:4")
        whole, odd = columns // 8, positions[:, columns // 8 :]
        good = _table("places", positions.device)
        if not bool(good[positions[:, :whole].int()].all() and good[(odd | 4 << 4).int()].all() and (odd < 16).all()):
            raise ValueError("places that are not two of four, the lower first")
        return Stored(values, positions)
    if layout != "bitmask" or (columns % 8 and bool((positions[:, -1] >> columns % 8).any())):
        raise ValueError("bits beyond the last column" if layout == "bitmask" else f"an unknown layout, {layout}")
    starts = starts_of(positions, columns)
    kept = int(starts[-1, -1]) + int(
        _table("counts", positions.device)[positions[-1, 32 * (starts.shape[1] - 1) :].int()].sum()
    )
    if values.shape != (kept,):
        raise ValueError(f"{tuple(values.shape)} values where the bitmask keeps {kept}")
    return Stored(values, positions, starts)


def _spans(weight: Tensor) -> int:
    return weight.shape[0] * -(-weight.shape[1] // SPAN)


def _bits(weight: Tensor) -> Tensor:
    return weight.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[weight.itemsize])


def _pack_bitmask(weight: Tensor, kept: Tensor) -> Stored:
    rows, columns = weight.shape
    padded = torch.nn.functional.pad(kept, (0, -columns % 8)).view(torch.uint8).view(rows, -1, 8)
    positions = padded[..., 0].clone()
    for bit in range(1, 8):
        positions |= padded[..., bit] << bit
    return Stored(weight[kept], positions, starts_of(positions, columns))


def _unpack_positions(positions: Tensor, columns: int, layout: str) -> Tensor:
    """Which of the columns have a value, bool (rows, columns): a byte tells about eight of them."""
    kept = _table(layout, positions.device)[positions.int()].view(torch.bool)
    return kept.view(len(positions), 8 * positions.shape[1])[:, :columns]


@lru_cache
def _table(what: str, device: torch.device) -> Tensor:
    """For each byte of a layout the eight bools that it stands for, as one number; or a fact about the byte.

    The facts: how many bits it has ("counts"), and whether it has the places of two groups of 2:4 ("places").
    """

    def kept(byte: int, column: int) -> bool:
        if what == "bitmask":
            return bool(byte >> column & 1)
        code = byte >> (column & 4) & 15
        return column & 3 in (code & 3, code >> 2)

    if what == "counts":
        return torch.tensor([byte.bit_count() for byte in range(256)], dtype=torch.uint8, device=device)
    if what == "places":
        return torch.tensor([all(c & 3 < c >> 2 for c in (b & 15, b >> 4)) for b in range(256)], device=device)
    rows = [[kept(byte, column) for column in range(8)] for byte in range(256)]
    return torch.tensor(rows, device=device).view(torch.int64)[:, 0]


# Which of four are kept, as a number of four bits -> the places of two that cover them, as four bits.
_NO_PAIR = 255
_PAIRS = [
    next((a | b << 2 for a, b in combinations(range(4), 2) if code & ~(1 << a | 1 << b) == 0), _NO_PAIR)
    for code in range(16)
]


def _codes(kept: Tensor) -> Tensor:
    """For each group of four the places of its two values in four bits, or `_NO_PAIR`."""
    groups = kept.reshape(-1, 4).view(torch.uint8)
    code = groups[:, 0] | groups[:, 1] << 1 | groups[:, 2] << 2 | groups[:, 3] << 3
    return torch.tensor(_PAIRS, dtype=torch.uint8, device=kept.device)[code.int()]


def _pack_24(weight: Tensor, kept: Tensor) -> Stored:
    rows, columns = weight.shape
    if columns % 4:
        raise ValueError(f"a number of columns that 4 divides, got {columns}")
    codes = _codes(kept)
    if bool((codes == _NO_PAIR).any()):
        count = int((codes == _NO_PAIR).sum())
        raise ValueError(f"at most 2 nonzeros in every 4 inputs, got {count} groups with more")
    places = torch.stack([codes & 3, codes >> 2], dim=1).long()
    values = weight.reshape(-1, 4).gather(1, places).view(rows, columns // 2)
    codes = torch.nn.functional.pad(codes.view(rows, -1), (0, columns // 4 % 2))
    return Stored(values, codes[:, ::2] | codes[:, 1::2] << 4)
