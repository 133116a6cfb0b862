"""A quantised weight, and the tensors that it is stored as: the ``pack-quantized`` form of compressed-tensors.

    weight_packed       int32 (R, ceil(C * bits / 32))      each row's codes as one stream of bits, the lowest first
    weight_scale        (R, G)                              in the dtype of the model
    weight_zero_point   int32 (ceil(R * bits / 32), G)      each group's codes down the rows; asymmetric grids only
    weight_shape        int64 (2,)                          R and C

A code is stored as ``code - low``, which is not negative. Codes of 3, 5, 6 and 7 bits reach over the ends of words, as
in compressed-tensors 0.20. 32-bit words are little-endian, as in every safetensors file.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from lors_cli.quantization.grid import Grid, Scales, values

PACKED, SCALE, ZERO_POINT, SHAPE = "weight_packed", "weight_scale", "weight_zero_point", "weight_shape"


class Quantized(NamedTuple):
    """A quantised weight (R, C)."""

    codes: Tensor  # int8 (R, C)
    scale: Tensor  # (R, G)
    zero_point: Tensor | None  # int8 (R, G); None stands for 0
    grid: Grid

    @property
    def scales(self) -> Scales:
        """Where its grid lies."""
        return Scales(self.scale, self.zero_point)

    def weight(self, dtype: torch.dtype | None = None) -> Tensor:
        """The numbers (R, C) that it stands for, in `dtype`, or in that of its scales."""
        return values(self.codes, self.scales, dtype or self.scale.dtype)

    def split(self, counts: list[int]) -> list["Quantized"]:
        """So many rows of it each; the tensors are views."""
        zero_points = [None] * len(counts) if self.zero_point is None else self.zero_point.split(counts)
        parts = zip(self.codes.split(counts), self.scale.split(counts), zero_points, strict=True)
        return [Quantized(*tensors, self.grid) for tensors in parts]

    def mask(self) -> Tensor:
        """Bool (R, C): which weights are not zero."""
        codes: Tensor = self.codes.unflatten(1, (-1, self.grid.group_size))
        zero = torch.zeros_like(codes[:, :, 0]) if self.zero_point is None else self.zero_point
        return codes.ne(zero[:, :, None]).flatten(1)


def room(weight: Tensor, grid: Grid, dtype: torch.dtype) -> Quantized:
    """Tensors to fill for a weight of the shape (R, C) of `weight`, with scales in `dtype`.

    Raises:
        ValueError: the group size does not divide the columns.

    """
    shape = weight.shape[0], grid.groups(weight.shape[1])
    zero_point = None if grid.symmetric else torch.empty(shape, dtype=torch.int8, device=weight.device)
    scale = torch.empty(shape, dtype=dtype, device=weight.device)
    return Quantized(torch.empty_like(weight, dtype=torch.int8), scale, zero_point, grid)


def to_tensors(quantized: Quantized) -> dict[str, Tensor]:
    """The tensors as which it is stored, by the names that follow the linear's."""
    codes, scale, zero_point, grid = quantized
    tensors = {PACKED: pack(codes, grid.bits), SCALE: scale, SHAPE: torch.tensor(codes.shape)}
    if zero_point is not None:
        tensors[ZERO_POINT] = pack(zero_point.T, grid.bits).T.contiguous()
    return tensors


def layout(shape: tuple[int, int], grid: Grid, dtype: torch.dtype) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """The shapes and dtypes of those tensors for a weight of `shape` in a model of `dtype`.

    Raises:
        ValueError: the group size does not divide the columns.

    """
    rows, columns = shape
    groups = grid.groups(columns)
    tensors = {
        PACKED: ((rows, words(columns, grid.bits)), torch.int32),
        SCALE: ((rows, groups), dtype),
        SHAPE: ((2,), torch.int64),
    }
    return tensors if grid.symmetric else {**tensors, ZERO_POINT: ((words(rows, grid.bits), groups), torch.int32)}


def bits_per_weight(shape: tuple[int, int], grid: Grid, dtype: torch.dtype) -> float:
    """How many bits a weight of `shape` takes as those tensors, with its share of all but the shape."""
    parts = layout(shape, grid, dtype)
    del parts[SHAPE]
    return 8 * sum(math.prod(size) * kind.itemsize for size, kind in parts.values()) / math.prod(shape)


def from_tensors(tensors: Mapping[str, Tensor], grid: Grid) -> Quantized:
    """The weight that is stored as these.

    Raises:
        ValueError: they are not those of a weight on this grid.

    """
    shape = tensors[SHAPE].tolist() if SHAPE in tensors and tensors[SHAPE].numel() == 2 else [0, 0]
    scale = tensors.get(SCALE, torch.empty(0))
    if not scale.is_floating_point():
        raise ValueError(f"{SCALE} as plain floats, got {scale.dtype}")
    expected = layout((shape[0], shape[1]), grid, scale.dtype)
    for name in dict.fromkeys([*expected, *tensors]):
        got = (tuple(tensors[name].shape), tensors[name].dtype) if name in tensors else "none"
        if got != expected.get(name, "none"):
            raise ValueError(f"{name}: {expected.get(name, 'none')} for {grid} and {SHAPE} {shape}, got {got}")
    if not bool((scale > 0).all() & scale.isfinite().all()):
        raise ValueError(f"{SCALE} of positive, finite numbers, got others")
    zero_point = None if grid.symmetric else unpack(tensors[ZERO_POINT].T, grid.bits, shape[0]).T.contiguous()
    return Quantized(unpack(tensors[PACKED], grid.bits, shape[1]), scale, zero_point, grid)


def words(count: int, bits: int) -> int:
    """How many 32-bit words `count` codes take."""
    return -(-count * bits // 32)


def pack(codes: Tensor, bits: int) -> Tensor:
    """The codes, int8 (R, C), as int32 (R, words): eight of them make `bits` bytes."""
    rows, columns = codes.shape
    eights = torch.nn.functional.pad((codes.int() + 2 ** (bits - 1)).to(torch.uint8), (0, -columns % 32))
    eights = eights.view(rows, eights.shape[1] // 8, 8)
    joined = torch.zeros(eights.shape[:2], dtype=torch.int64, device=codes.device)
    for place in range(8):
        joined |= eights[:, :, place].long() << bits * place
    stream = joined.view(torch.uint8).view(*joined.shape, 8)[:, :, :bits].flatten(1)
    return stream[:, : 4 * words(columns, bits)].flatten().view(torch.int32).view(rows, words(columns, bits))


def unpack(packed: Tensor, bits: int, columns: int) -> Tensor:
    """The codes, int8 (R, `columns`), that `pack` made these words, (R, words), of."""
    rows = packed.shape[0]
    stream = packed.contiguous().view(torch.uint8)
    stream = torch.nn.functional.pad(stream, (0, -stream.shape[1] % bits))
    stream = stream.view(rows, stream.shape[1] // bits, bits)
    joined = torch.nn.functional.pad(stream, (0, 8 - bits)).view(torch.int64)[:, :, 0]
    eights = torch.empty(rows, joined.shape[1], 8, dtype=torch.int8, device=packed.device)
    for place in range(8):
        eights[:, :, place] = (joined >> bits * place & 2**bits - 1) - 2 ** (bits - 1)
    return eights.flatten(1)[:, :columns].contiguous()
