"""Products with packed weights, and unpacking, in C++ (`SOURCES`) where that runs, else in plain PyTorch or Triton.

The layouts are those of `lors_cli.sparsity.packed`, and of quantised weights of `lors_cli.quantization.packed`; the
functions there that unpack rows are the oracles. A batch of up to `BATCH` inputs is multiplied while the weight is
decoded, so that a weight's bytes are all that is read: decoding a token is bound by them. Larger batches multiply with
a tile of rows, which is unpacked for one product.
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
from lors_cli.kernels import gemv
from lors_cli.quantization import packed as codes
from lors_cli.sparsity import packed
from lors_cli.sparsity.packed import Stored

log = logging.getLogger(__name__)

INSTRUCTIONS = (
    *("avx512f", "avx512bw", "avx512vl", "avx512vbmi", "avx512_vbmi2", "avx512_bf16"),
    *("fma", "popcnt", "bmi2"),
)
LAYOUTS = {"dense": 0, "2:4": 1, "bitmask": 2}
SOURCES = ("packed.cpp", "codes.cpp")  # one text, in this order
MULTIPLIED = (torch.bfloat16, torch.float32)
STEP = 64  # columns of codes that are decoded at once
BATCH = 8
TILE_BYTES = 3 << 23  # products with fewer rows of a wide weight are slow
SMALL = 1 << 16  # weights; fewer are not worth a second thread

_POINTER, _INT, _LONG = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
_WEIGHT: list[Any] = [_INT, _INT, _POINTER, _POINTER, _POINTER, _LONG, _LONG, _LONG]
_CODES: list[Any] = [_INT, _INT, _INT, *5 * [_POINTER], *4 * [_LONG]]


@lru_cache
def library() -> ctypes.CDLL | None:
    """The C++ code, built at first use; None where it does not run, which is said once."""
    source = "".join(resources.files(__package__).joinpath(name).read_text(encoding="utf-8") for name in SOURCES)
    try:
        code = native.load("packed", source, INSTRUCTIONS)
    except native.UnavailableError as error:
        log.warning("packed weights run in plain PyTorch, which is slower: %s", error)
        return None
    code.lors_multiply.argtypes = [*_WEIGHT, _POINTER, _POINTER, _POINTER, _INT, _INT]
    code.lors_unpack.argtypes = [*_WEIGHT, _POINTER, _LONG, _LONG, _INT]
    code.lors_multiply_codes.argtypes = [*_CODES, _POINTER, _POINTER, _POINTER, _INT, _INT]
    code.lors_decode.argtypes = [*_CODES, _POINTER, _LONG, _LONG, _INT]
    code.lors_read.argtypes, code.lors_read.restype = [_POINTER, _LONG, _INT], _LONG
    for function in (code.lors_multiply, code.lors_unpack, code.lors_multiply_codes, code.lors_decode):
        function.restype = None
    return code


def multiply(stored: Stored, shape: tuple[int, int], x: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear(x, W, bias)`` without W.

    Args:
        stored: W (R, C), packed, or dense for a comparison, with scales where it is quantised; as `packed.opened` wants
            it, which is not looked at again.
        shape: (R, C).
        x: (..., C), in the dtype of W, which of codes is that of their scales.
        bias: (R,), or None.

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit, as of `F.linear`.

    """
    rows, columns = shape
    scale, size = stored.scale, x.shape
    like = stored.values if scale is None else scale
    if size[-1] != columns or x.dtype != like.dtype or x.device != like.device:
        got = f"{tuple(size)} {x.dtype} on {x.device}"
        raise RuntimeError(f"x: (..., {columns}) {like.dtype} on {like.device}, got {got}")
    batch = x.numel() // columns
    if not 0 < batch <= BATCH or _wide(stored) or not (code := _code(stored, shape, x.dtype)):
        few = gemv.available(stored, batch)
        return (gemv.multiply if few else _by_tiles)(stored, shape, x.reshape(-1, columns), bias).view(*size[:-1], rows)
    x, y = x.contiguous(), x.new_empty(*size[:-1], rows)
    threads = torch.get_num_threads() if rows * columns > SMALL else 1
    product = (x.data_ptr(), None if bias is None else bias.data_ptr(), y.data_ptr(), batch, threads)
    if scale is None:
        code.lors_multiply(*_weight(stored, shape), *product)
    else:
        code.lors_multiply_codes(*_codes(stored, shape, scale), *product)
    return y


def _wide(stored: Stored) -> bool:
    """Whether a code less its zero point may have nine bits."""
    return stored.zero_point is not None and stored.values.dtype == torch.int8


def _code(stored: Stored, shape: tuple[int, int], dtype: torch.dtype) -> ctypes.CDLL | None:
    """The C++ code, if it reads such a weight in this dtype."""
    if stored.values.device.type != "cpu" or dtype not in MULTIPLIED:
        return None
    if stored.scale is not None:
        group = shape[1] // stored.scale.shape[1]
        if group % STEP and (STEP % group or group < 4):
            return None
    return library()


def _by_tiles(stored: Stored, shape: tuple[int, int], x: Tensor, bias: Tensor | None) -> Tensor:
    rows, columns = shape
    size = max(TILE_BYTES // (columns * x.itemsize), 1)
    if size >= rows or (stored.positions is None and stored.scale is None):
        return F.linear(x, weight_rows(stored, shape, 0, rows, x.dtype), bias)
    tile, y = x.new_empty(size, columns), x.new_empty(len(x), rows)
    for first in range(0, rows, size):
        end = min(first + size, rows)
        weight = weight_rows(stored, shape, first, end, x.dtype, into=tile[: end - first])
        if bias is None:
            torch.mm(x, weight.t(), out=y[:, first:end])
        else:
            torch.addmm(bias[first:end], x, weight.t(), out=y[:, first:end])
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


def weight_rows(
    stored: Stored, shape: tuple[int, int], first: int, end: int, dtype: torch.dtype, *, into: Tensor | None = None
) -> Tensor:
    """Rows `first` to `end` (excluded) of a weight (R, C), packed or not; what codes stand for in `dtype`.

    They may be written `into` a contiguous tensor of their shape.
    """
    if stored.scale is None:
        return unpack_rows(stored, shape, first, end, into=into)
    if (code := _code(stored, shape, dtype)) is None:
        return codes.weight_rows(stored, shape, first, end, dtype)
    rows = stored.values.new_empty(end - first, shape[1], dtype=dtype) if into is None else into
    threads = torch.get_num_threads() if rows.numel() > SMALL else 1
    scale = stored.scale.to(dtype)
    code.lors_decode(*_codes(stored, shape, scale), rows.data_ptr(), first, end, threads)
    return rows


def read(tensor: Tensor) -> None:
    """Read a tensor on the CPU, and do nothing with it: what memory gives at most, for a comparison.

    Raises:
        RuntimeError: the C++ code does not run here.

    """
    if (code := library()) is None:
        raise RuntimeError("reading needs the C++ code")
    code.lors_read(tensor.data_ptr(), tensor.nbytes, torch.get_num_threads())


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


def _codes(stored: Stored, shape: tuple[int, int], scale: Tensor) -> tuple[object, ...]:
    values, positions, starts, _, zero_point = stored
    return (
        LAYOUTS[stored.layout],
        8 if values.dtype == torch.int8 else 4,
        scale.itemsize,
        values.data_ptr(),
        None if positions is None else positions.data_ptr(),
        None if starts is None else starts.data_ptr(),
        scale.data_ptr(),
        None if zero_point is None else zero_point.data_ptr(),
        values.numel(),
        *shape,
        shape[1] // scale.shape[1],
    )
