"""The merged weight of LoRS, ``where(W != 0, W + s B A, 0)``: fused on CUDA, in blocks of rows elsewhere.

The low-rank parts are float32 whatever W is and must not be rounded first: the sum is taken in their precision and
rounded once.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lors_cli.adapters import merge_cache
from lors_cli.kernels import merge as kernel
from lors_cli.sparsity import packed, rounding
from lors_cli.sparsity.packed import Stored

BLOCK_BYTES = 1 << 22  # of a block of rows: small enough for a CPU's cache, large enough for its matrix products


@dataclass
class Merged:
    """The merged weight (R, C) in `dtype`, as a whole or in blocks of rows; the same numbers either way.

    `stored` is W (R, C), dense or packed, lora_A (rank, C), lora_B (R, rank). With a `seed`, (), int64, it is rounded
    to bfloat16 stochastically (`lors_cli.sparsity.rounding`), else to nearest. `slot` names where it may be kept.
    """

    stored: Stored
    lora_A: Tensor
    lora_B: Tensor
    scale: float
    seed: Tensor | None
    dtype: torch.dtype
    slot: int = merge_cache.NONE

    @property
    def shape(self) -> tuple[int, int]:
        """(R, C)."""
        return self.lora_B.shape[0], self.lora_A.shape[1]

    def whole(self, *, last: bool = False) -> Tensor:
        """All of it. `last`: it is not needed again after this use."""
        kept = self._kept(last=last)
        return self.make() if kept is None else kept

    def blocks(self, *, last: bool = False) -> Iterator[tuple[int, int, Tensor]]:
        """First row, last row (excluded) and content of each block; without a slot it never exists as a whole."""
        kept = self._kept(last=last)
        for first, end in self._bounds():
            yield first, end, self._rows(first, end) if kept is None else kept[first:end]

    def make(self) -> Tensor:
        """Merge, whatever is kept."""
        if kernel.available(self.stored.values, self.dtype):
            return kernel.merge(self.stored, self.lora_A, self.lora_B, self.scale, self.dtype, self.seed)
        merged = torch.empty(self.shape, dtype=self.dtype, device=self.lora_A.device)
        for first, end in self._bounds():
            merged[first:end] = self._rows(first, end)
        return merged

    def _kept(self, *, last: bool) -> Tensor | None:
        seed = () if self.seed is None else (self.seed,)
        operands = self.stored.values, self.lora_A, self.lora_B, *seed
        return merge_cache.use(self.slot, operands, self.scale, self.dtype, self.make, last=last)

    def _bounds(self) -> Iterator[tuple[int, int]]:
        rows, columns = self.shape
        size = max(BLOCK_BYTES // (4 * columns), 1)
        for first in range(0, rows, size):
            yield first, min(first + size, rows)

    def _rows(self, first: int, end: int) -> Tensor:
        weight = packed.unpack_rows(self.stored, self.shape, first, end)
        with torch.autocast(weight.device.type, enabled=False):  # it would multiply in 16 bits
            merged = (self.lora_B[first:end] * self.scale) @ self.lora_A
        merged *= weight != 0
        merged += weight
        if self.seed is not None:
            return rounding.stochastic_bfloat16(merged, self.seed, first * self.shape[1]).to(self.dtype)
        return merged.to(self.dtype)
