"""The column loop of SparseGPT on one block of columns, in one kernel launch (Triton).

The plain version, some ten launches for each column, is `lors_cli.pruning.sparsegpt.prune_block`. With the upper
factor U (B, B), for the columns j of the block (R, B) from left to right::

    e_j = w_j / U_jj where removed, else 0        w_j = 0 where removed        w_k -= e_j * U_jk  for k > j

Rows do not depend on each other, so a program holds ROWS of them in registers from the first column to the last. All is
IEEE float32 in the order of the plain version; sums over columns have one term that is not zero, so they are exact.
"""

from __future__ import annotations  # the kernel is annotated with names of Triton, which may be absent

from typing import Any

import torch
from torch import Tensor

from lors_cli.sparsity.pattern import Pattern

try:
    import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
    import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]
except ImportError:  # it comes with the CUDA builds of PyTorch on Linux only
    triton = tl = None

# One warp a program: more would share the columns of a row, and each sum over columns wait at two barriers. With four
# rows the tiles fit the registers (103 of 255 on Hopper), and small matrices still make programs enough.
ROWS, WARPS = 4, 1
COLUMNS = 128  # the tile; shorter blocks are masked rather than compiled anew


def available(tensor: Tensor) -> bool:
    """Whether `prune_block` can be used: float32 on CUDA, and Triton is installed and compiles (no interpreter)."""
    compiles = triton is not None and isinstance(_compiled, triton.runtime.JITFunction)
    return compiles and tensor.is_cuda and tensor.dtype == torch.float32


def prune_block(weight: Tensor, factor: Tensor, pattern: Pattern, removed: Tensor | None) -> tuple[Tensor, Tensor]:
    """Prune the columns of one block.

    Args:
        weight: (R, B) float32, with any strides; not written to.
        factor: (B, B) float32, upper triangular.
        pattern: for N:M, M divides B, and the kernel chooses when it reaches a group: the smallest w^2 / U_jj^2 of
            the row go. Of equal ones the first goes, where `torch.topk` promises nothing.
        removed: (R, B) bool, what to remove instead; for an unstructured pattern.

    Returns:
        the pruned weight, and the errors e to be carried to the columns right of the block; both (R, B).

    """
    rows, columns = weight.shape
    n, m = (pattern.n or 0, pattern.m or 1) if removed is None else (1, 1)
    if columns % m or (removed is None and pattern.m is None):
        raise ValueError(f"expected whole groups of N:M or a mask of what to remove, got {columns} columns, {pattern}")
    pruned = torch.empty(rows, columns, dtype=torch.float32, device=weight.device)
    errors = torch.empty_like(pruned)
    with torch.cuda.device_of(weight):  # Triton launches on the current device, whatever the tensors are on
        _compiled[(triton.cdiv(rows, ROWS),)](
            weight,
            factor.contiguous(),
            removed if removed is None else removed.contiguous(),
            pruned,
            errors,
            rows,
            columns,
            *weight.stride(),
            DROPPED=m - n,
            GROUP=m,
            ROWS=ROWS,
            TILE=max(COLUMNS, triton.next_power_of_2(columns)),
            num_warps=WARPS,
            enable_fp_fusion=False,  # a fused multiply-add rounds once, the published code twice
        )
    return pruned, errors


def _columns(  # type: ignore[no-untyped-def]  # Triton takes annotations for types of its own
    weight,
    factor,
    removed_mask,
    pruned,
    errors,
    rows,
    columns,
    stride_row,
    stride_column,
    DROPPED: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    k = tl.arange(0, TILE)[None, :]
    inside = (row < rows) & (k < columns)
    place = row * columns + k  # in all but the weight, which may be a part of a larger matrix
    w = tl.load(weight + row * stride_row + k * stride_column, mask=inside, other=0.0)
    e = tl.zeros((ROWS, TILE), tl.float32)
    pivots = tl.load(factor + k * (columns + 1), mask=k < columns, other=1.0)
    if DROPPED == 0:
        removed = tl.load(removed_mask + place, mask=inside, other=0) != 0
    else:
        removed = tl.zeros((ROWS, TILE), tl.int1)

    for start in range(0, columns, GROUP):
        if DROPPED > 0:
            # div_rn: on CUDA a plain / of float32 is an approximation
            score = tl.div_rn(w * w, pivots * pivots)
            rank = tl.zeros((ROWS, TILE), tl.int32)  # how many of the group go before this one
            for i in tl.range(GROUP, loop_unroll_factor=4):
                # a register cannot be indexed by a variable: a column is taken out as a sum over masked columns
                other = tl.sum(tl.where(k == start + i, score, 0.0), axis=1)[:, None]
                rank += ((other < score) | ((other == score) & (k > start + i))).to(tl.int32)
            removed = removed | ((k >= start) & (k < start + GROUP) & (rank < DROPPED))
        for j in range(start, start + GROUP):
            u = tl.load(factor + j * columns + k, mask=k < columns, other=0.0)
            gone = tl.sum(tl.where((k == j) & removed, w, 0.0), axis=1)[:, None]  # zero where w_j stays
            error = tl.div_rn(gone, tl.load(factor + j * (columns + 1)))
            e = tl.where(k == j, error, e)
            w = tl.where(k > j, w - error * u, w)

    tl.store(pruned + place, tl.where(removed, 0.0, w), mask=inside)
    tl.store(errors + place, e, mask=inside)


_compiled: Any = None if triton is None else triton.jit(_columns)
