"""Products with packed weights, and unpacking, in C++ (`packed.cpp`) where that runs, else in plain PyTorch.

The layouts are those of `lors_cli.sparsity.packed`, whose `unpack_rows` is the oracle. A batch of up to `BATCH` inputs
is multiplied while the weight is decoded, so that a weight's bytes are all that is read: decoding a token is bound by
them. Larger batches multiply with a tile of rows, which is unpacked into the core's cache and there for one product.
"""

import ctypes
import logging
from functools import lru_cache
from importlib import resources
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lors_cli import native
from lors_cli.quantization import packed as codes
from lors_cli.sparsity import packed
from lors_cli.sparsity.packed import Stored

log = logging.getLogger(__name__)

INSTRUCTIONS = (
    *("avx512f", "avx512bw", "avx512vl", "avx512vbmi", "avx512_vbmi2", "avx512_bf16"),
    *("fma", "popcnt", "bmi2"),
)
LAYOUTS = {"dense": 0, "2:4": 1, "bitmask": 2}
MULTIPLIED = (torch.bfloat16, torch.float32)
BATCH = 8
TILE_BYTES = 1 << 23
SMALL = 1 << 16  # weights; fewer are not worth a second thread
HUGE = 1 << 22  # bytes from which on huge pages are asked for

_POINTER, _INT, _LONG = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
_WEIGHT: list[Any] = [_INT, _INT, _POINTER, _POINTER, _POINTER, _LONG, _LONG, _LONG]


@lru_cache
def library() -> ctypes.CDLL | None:
    """The C++ code, built at first use; None where it does not run, which is said once."""
    source = resources.files(__package__).joinpath("packed.cpp").read_text(encoding="utf-8")
    try:
        code = native.load("packed", source, INSTRUCTIONS)
    except native.UnavailableError as error:
        log.warning("packed weights run in plain PyTorch, which is slower: %s", error)
        return None
    code.lors_multiply.argtypes = [*_WEIGHT, _POINTER, _POINTER, _POINTER, _INT, _INT]
    code.lors_unpack.argtypes = [*_WEIGHT, _POINTER, _LONG, _LONG, _INT]
    code.lors_advise.argtypes = [_POINTER, _LONG]
    code.lors_read.argtypes, code.lors_read.restype = [_POINTER, _LONG, _INT], _LONG
    for function in (code.lors_multiply, code.lors_unpack, code.lors_advise):
        function.restype = None
    return code


def multiply(stored: Stored, shape: tuple[int, int], x: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear(x, W, bias)`` without W.

    Args:
        stored: W (R, C), packed, or dense for a comparison; as `packed.check` wants it, which is not looked at again.
        shape: (R, C).
        x: (..., C), in the dtype of W.
        bias: (R,), or None.

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit, as of `F.linear`.

    """
    rows, columns = shape
    if x.shape[-1] != columns or x.dtype != stored.values.dtype or x.device != stored.values.device:
        got = f"{tuple(x.shape)} {x.dtype} on {x.device}"
        raise RuntimeError(f"x: (..., {columns}) {stored.values.dtype} on {stored.values.device}, got {got}")
    flat = x.reshape(-1, columns).contiguous()
    batch = len(flat)
    if 0 < batch <= BATCH and x.device.type == "cpu" and x.dtype in MULTIPLIED and (code := library()):
        y = x.new_empty(batch, rows)
        threads = torch.get_num_threads() if rows * columns > SMALL else 1
        added = None if bias is None else bias.data_ptr()
        code.lors_multiply(*_weight(stored, shape), flat.data_ptr(), added, y.data_ptr(), batch, threads)
    else:
        y = _by_tiles(stored, shape, flat, bias)
    return y.view(*x.shape[:-1], rows)


def _by_tiles(stored: Stored, shape: tuple[int, int], x: Tensor, bias: Tensor | None) -> Tensor:
    rows, columns = shape
    size = max(TILE_BYTES // (columns * x.itemsize), 1)
    if size >= rows:
        return F.linear(x, unpack_rows(stored, shape, 0, rows), bias)
    tile, y = x.new_empty(size, columns), x.new_empty(len(x), rows)
    for first in range(0, rows, size):
        end = min(first + size, rows)
        weight = unpack_rows(stored, shape, first, end, into=tile[: end - first])
        y[:, first:end] = F.linear(x, weight, None if bias is None else bias[first:end])
    return y


def unpack(stored: Stored, shape: tuple[int, int]) -> Tensor:
    """The weight (R, C) that `stored` was packed from, bit for bit; `stored` is as `packed.check` wants it."""
    return unpack_rows(stored, shape, 0, shape[0])


def unpack_rows(stored: Stored, shape: tuple[int, int], first: int, end: int, *, into: Tensor | None = None) -> Tensor:
    """Rows `first` to `end` (excluded) of the weight; they may be written `into` a contiguous tensor of their shape."""
    code = library() if stored.positions is not None and stored.values.device.type == "cpu" else None
    if code is None:
        return packed.unpack_rows(stored, shape, first, end)
    rows = stored.values.new_empty(end - first, shape[1]) if into is None else into
    threads = torch.get_num_threads() if rows.numel() > SMALL else 1
    code.lors_unpack(*_weight(stored, shape), rows.data_ptr(), first, end, threads)
    return rows


def weight_rows(stored: Stored, shape: tuple[int, int], first: int, end: int, dtype: torch.dtype) -> Tensor:
    """Rows `first` to `end` (excluded) of a weight (R, C), packed or not; what codes stand for in `dtype`."""
    if stored.scale is None:
        return unpack_rows(stored, shape, first, end)
    return codes.weight_rows(stored, shape, first, end, dtype)


def read(tensor: Tensor) -> None:
    """Read a tensor on the CPU, and do nothing with it: what memory gives at most, for a comparison.

    Raises:
        RuntimeError: the C++ code does not run here.

    """
    if (code := library()) is None:
        raise RuntimeError("reading needs the C++ code")
    code.lors_read(tensor.data_ptr(), tensor.nbytes, torch.get_num_threads())


def in_huge_pages(tensor: Tensor) -> Tensor:
    """The same numbers, where they are many in memory for which huge pages are asked for: reading it is faster."""
    code = library() if tensor.device.type == "cpu" and tensor.nbytes >= HUGE else None
    if code is None:
        return tensor
    fresh = torch.empty_like(tensor, memory_format=torch.contiguous_format)
    code.lors_advise(fresh.data_ptr(), fresh.nbytes)
    return fresh.copy_(tensor)


def _weight(stored: Stored, shape: tuple[int, int]) -> tuple[object, ...]:
    values, positions, starts, *_ = stored
    return (
        LAYOUTS[stored.layout],
        values.itemsize,
        values.data_ptr(),
        None if positions is None else positions.data_ptr(),
        None if starts is None else starts.data_ptr(),
        values.numel(),
        *shape,
    )
