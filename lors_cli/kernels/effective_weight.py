"""The effective weight of LoRS in one pass over a stored weight (Triton).

The plain version is `lors_cli.adapters.effective_weight.EffectiveWeight`. The weight W (R, C) is dense, or decoded on
the way from one of the layouts of `lors_cli.sparsity.packed` or `lors_cli.quantization.packed`::

    where(W != 0, W + (s B) A, 0)        summed in float32, rounded once

A program makes a tile. In bf16 it moves 4 bytes a weight (2 in, 2 out), or 3.125 from half-sparse packed ones, where
the separate operations of the LoRS paper's listing (addmm, !=, mul) move 16. From 2:4 codes of four bits it moves 2.39.

Quantisation-aware, the sum is taken in float64 and put on the grid of W, as the plain version does.
"""

from __future__ import annotations  # the kernel is annotated with names of Triton, which may be absent

from typing import Any

import torch
from torch import Tensor

from lors_cli.sparsity import rounding
from lors_cli.sparsity.packed import SPAN, Stored

try:
    import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
    import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]
except ImportError:  # it comes with the CUDA builds of PyTorch on Linux only
    triton = tl = None

# A tile of a bitmask spans the columns that one entry of `starts` counts from. Sums in float64 take more registers.
TILES = {"dense": (64, 128), "2:4": (64, 128), "bitmask": (32, SPAN)}
TILES_ON_GRID = {"dense": (16, 128), "2:4": (16, 128), "bitmask": (8, SPAN)}
WARPS = 4
OUTPUTS = (torch.float32, torch.bfloat16, torch.float16)


def available(values: Tensor, dtype: torch.dtype) -> bool:
    """Whether `write` can be used: on CUDA, to a dtype of `OUTPUTS`, and Triton is installed and compiles."""
    compiles = triton is not None and isinstance(_compiled, triton.runtime.JITFunction)
    return compiles and values.is_cuda and values.dtype in (*OUTPUTS, torch.uint8) and dtype in OUTPUTS


def write(
    stored: Stored,
    lora_A: Tensor,
    lora_B: Tensor,
    scale: float,
    seed: Tensor | None,
    into: Tensor,
    bits: int = 0,
) -> Tensor:
    """Write the effective weight.

    Args:
        stored: W (R, C).
        lora_A: (rank, C), float32.
        lora_B: (R, rank), float32.
        scale: s.
        seed: (), int64: round to bfloat16 stochastically, as `lors_cli.sparsity.rounding` does; None: to nearest.
        into: (R, C), where it goes; its dtype is that of the result.
        bits: of a code, to put it on the grid of a quantised W; 0 for not.

    Returns:
        `into`.

    """
    rows, columns = lora_B.shape[0], lora_A.shape[1]
    tile_rows, tile_columns = (TILES_ON_GRID if bits else TILES)[stored.layout]
    if bits:  # the scale as a number would be rounded to float32
        lora_A, lora_B, scale = lora_A.double(), lora_B.double() * scale, 1.0
    # below float32 the tensor cores' three-term products are exact enough by far
    precision = "ieee" if into.dtype == torch.float32 and seed is None else "tf32x3"
    with torch.cuda.device_of(lora_A):  # Triton launches on the current device, whatever the tensors are on
        _compiled[(triton.cdiv(rows, tile_rows), triton.cdiv(columns, tile_columns))](
            *(None if tensor is None else tensor.contiguous() for tensor in stored),
            lora_A.contiguous(),
            lora_B.contiguous(),
            seed,
            into,
            rows,
            columns,
            lora_A.shape[0],
            scale,
            LAYOUT=stored.layout,
            GROUP=0 if stored.scale is None else columns // stored.scale.shape[1],
            BITS=bits,
            PRECISION=precision,
            ROWS=tile_rows,
            COLUMNS=tile_columns,
            RANK=16 if lora_A.shape[0] <= 16 else 32,  # tl.dot takes no fewer than 16
            FACTOR_0=rounding.FACTORS[0],
            FACTOR_1=rounding.FACTORS[1],
            num_warps=WARPS,
        )
    return into


def _write(  # type: ignore[no-untyped-def]  # Triton takes annotations for types of its own
    values,
    positions,
    starts,
    grid_scale,
    zero_point,
    lora_A,
    lora_B,
    seed,
    into,
    rows,
    columns,
    rank,
    scale,
    LAYOUT: tl.constexpr,
    GROUP: tl.constexpr,
    BITS: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    RANK: tl.constexpr,
    FACTOR_0: tl.constexpr,
    FACTOR_1: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = (row < rows) & (column < columns)

    if LAYOUT == "dense":
        kept = inside
        index = row * columns + column
        if GROUP:
            index += row * (columns % 2)  # rows of codes are whole bytes
    else:
        width = (columns + 7) // 8
        byte = tl.load(positions + row * width + column // 8, mask=inside, other=0).to(tl.int32)
        if LAYOUT == "2:4":
            place = (byte >> (column & 4)) & 15  # the group's four bits: the places of its two values
            second = column & 3 == place >> 2
            kept = ((column & 3 == place & 3) | second) & inside
            index = row * (columns // 2) + (column // 4) * 2 + second.to(tl.int32)
        else:
            bit = (byte >> (column & 7)) & 1
            kept = (bit != 0) & inside
            begin = tl.load(
                starts + row * ((columns + COLUMNS - 1) // COLUMNS) + tl.program_id(1), mask=row < rows, other=0
            )
            index = begin + tl.cumsum(bit, axis=1) - bit

    if GROUP:
        code = (
            (tl.load(values + index // 2, mask=kept, other=0).to(tl.int32) >> ((index & 1) * 4).to(tl.int32)) & 15
        ) - 8
        group = row * (columns // GROUP) + column // GROUP
        step = tl.load(grid_scale + group, mask=inside, other=1.0)
        zero = tl.zeros((ROWS, COLUMNS), tl.int32)
        if zero_point is not None:
            zero += tl.load(zero_point + group, mask=inside, other=0).to(tl.int32)
        number = tl.where(kept, code - zero, 0)
        if BITS:
            exact = number.to(tl.float64) * step.to(tl.float64)
            for k in range(rank):
                b = tl.load(lora_B + row * rank + k, mask=row < rows, other=0.0)
                a = tl.load(lora_A + k * columns + column, mask=column < columns, other=0.0)
                exact += tl.where(number != 0, b * a, 0.0)
            # adding and taking away 1.5 * 2^52 rounds to whole numbers, ties to the even one
            whole = (exact / step.to(tl.float64) + 6755399441055744.0) - 6755399441055744.0 + zero
            number = tl.clamp(whole, -(2.0 ** (BITS - 1)), 2.0 ** (BITS - 1) - 1) - zero
        w = (number.to(tl.float32) * step.to(into.dtype.element_ty).to(tl.float32)).to(into.dtype.element_ty)
    else:
        w = tl.load(values + index, mask=kept, other=0.0)

    if BITS:
        m = w.to(tl.float32)
    else:
        update = tl.zeros((ROWS, COLUMNS), tl.float32)
        for first in range(0, rank, RANK):
            across = first + tl.arange(0, RANK)
            b = tl.load(lora_B + row * rank + across[None, :], mask=(row < rows) & (across[None, :] < rank), other=0.0)
            a = tl.load(
                lora_A + across[:, None] * columns + column,
                mask=(across[:, None] < rank) & (column < columns),
                other=0.0,
            )
            update = tl.dot(b * scale, a, update, input_precision=PRECISION)
        m = tl.where(w != 0, w.to(tl.float32) + update, 0.0)

    if seed is not None:
        noise = (row * columns + column).to(tl.uint32)
        for turn in tl.static_range(2):
            noise ^= noise >> 16
            noise *= FACTOR_0
            noise ^= noise >> 15
            noise *= FACTOR_1
            noise ^= noise >> 16
            if turn == 0:
                noise ^= tl.load(seed).to(tl.uint32)
        bits = (m.to(tl.uint32, bitcast=True) + (noise & 0xFFFF)) & 0xFFFF0000
        finite = tl.abs(m) < float("inf")  # false for NaN
        m = tl.where(finite, bits.to(tl.float32, bitcast=True), m)
    tl.store(into + row * columns + column, m.to(into.dtype.element_ty), mask=inside)


_compiled: Any = None if triton is None else triton.jit(_write)
