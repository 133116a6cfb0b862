"""Products of a few inputs with a 2:4 weight on a GPU, while it is read (Triton).

The layout is that of `lors_cli.sparsity.packed`, whose `unpack_rows` is the oracle. The two bits of a value are its
place among four inputs, so the input that it is multiplied with is gathered: a shift, a mask and a sum a value, where a
bitmask would take a cumulative sum. In bfloat16 9/16 of the bytes of the dense weight are read, and no more is written
than the result.
"""

from __future__ import annotations  # the kernel is annotated with names of Triton, which may be absent

from typing import Any

import torch
from torch import Tensor

from lors_cli.kernels.effective_weight import OUTPUTS
from lors_cli.sparsity.packed import Stored

try:
    import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
    import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]
except ImportError:  # it comes with the CUDA builds of PyTorch on Linux only
    triton = tl = None

BATCH = 8  # inputs at most; more are worth an unpacked weight
ROWS = 4  # of a program
VALUES = 256  # of a row in one turn, shared by the inputs
WARPS = 4


def available(stored: Stored, batch: int) -> bool:
    """Whether `multiply` can be used: numbers in 2:4 on CUDA, not too many inputs, and Triton compiles."""
    compiles = triton is not None and isinstance(_compiled, triton.runtime.JITFunction)
    fits = stored.layout == "2:4" and stored.scale is None and stored.values.dtype in OUTPUTS
    return compiles and fits and stored.values.is_cuda and 0 < batch <= BATCH


def multiply(stored: Stored, shape: tuple[int, int], x: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear(x, W, bias)`` without W, summed in float32.

    Args:
        stored: W (R, C), as 2:4.
        shape: (R, C).
        x: (B, C) in the dtype of W, B at most `BATCH`.
        bias: (R,), or None.

    """
    rows, columns = shape
    batch = triton.next_power_of_2(len(x))
    y = x.new_empty(len(x), rows)
    with torch.cuda.device_of(x):  # Triton launches on the current device, whatever the tensors are on
        _compiled[(triton.cdiv(rows, ROWS),)](
            stored.values.contiguous(),
            stored.positions.contiguous(),  # type: ignore[union-attr]  # 2:4 has them
            x.contiguous(),
            bias,
            y,
            rows,
            columns,
            len(x),
            BATCH=batch,
            ROWS=ROWS,
            VALUES=VALUES // batch,
            num_warps=WARPS,
        )
    return y


def _multiply(  # type: ignore[no-untyped-def]  # Triton takes annotations for types of its own
    values,
    positions,
    x,
    bias,
    y,
    rows,
    columns,
    batch,
    BATCH: tl.constexpr,
    ROWS: tl.constexpr,
    VALUES: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    one = tl.arange(0, BATCH)[None, None, :]
    kept, width = columns // 2, (columns + 7) // 8  # of a row: values, and bytes with the places of four of them
    sums = tl.zeros((ROWS, VALUES, BATCH), tl.float32)
    for first in range(0, kept, VALUES):
        value = first + tl.arange(0, VALUES)[None, :]
        inside = (row < rows) & (value < kept)
        w = tl.load(values + row * kept + value, mask=inside, other=0.0).to(tl.float32)
        byte = tl.load(positions + row * width + value // 4, mask=inside, other=0).to(tl.int32)
        column = value // 2 * 4 + ((byte >> value % 4 * 2) & 3)
        there = inside[:, :, None] & (one < batch)
        inputs = tl.load(x + one * columns + column[:, :, None], mask=there, other=0.0).to(tl.float32)
        sums += w[:, :, None] * inputs
    total = tl.sum(sums, axis=1)
    if bias is not None:
        total += tl.load(bias + row, mask=row < rows, other=0.0).to(tl.float32)
    to = y + tl.arange(0, BATCH)[None, :] * rows + row
    tl.store(to, total.to(y.dtype.element_ty), mask=(row < rows) & (tl.arange(0, BATCH)[None, :] < batch))


_compiled: Any = None if triton is None else triton.jit(_multiply)
