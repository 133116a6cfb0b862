"""The effective weight of LoRS, W' = W + s (B A) * (W != 0): in one kernel on CUDA, in blocks of rows on a CPU.

The low-rank parts are float32 whatever W is and must not be rounded first: the sum is taken in their precision and
rounded once. The formula itself is in `EffectiveWeight._fill`.

A quantised W is decoded on the way. Quantisation-aware (Munoz et al. 2024, arXiv 2410.03750) W' is then put on W's own
grid, which is what a merge writes: ``clamp(round(W' / scale) + zero_point)``. That sum is taken in float64, so that the
codes do not depend on the order of its terms, on the device, or on the dtype of the model.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lors_cli.adapters import effective_cache
from lors_cli.kernels import effective_weight as kernel
from lors_cli.kernels.packed import weight_rows
from lors_cli.quantization import packed
from lors_cli.quantization.grid import Grid, codes_of, values
from lors_cli.sparsity import rounding
from lors_cli.sparsity.packed import Stored

# Rows are made so many bytes at a time, which stay in the cache of a CPU's core, and multiplied with so many.
MADE_BYTES, MULTIPLIED_BYTES = 1 << 20, 1 << 23


@dataclass
class EffectiveWeight:
    """W' (R, C) in `dtype`, as a whole or in blocks of rows; the same numbers either way.

    `stored` is W (R, C), dense or packed, lora_A (rank, C), lora_B (R, rank). With a `seed`, (), int64, it is rounded
    to bfloat16 stochastically (`lors_cli.sparsity.rounding`), else to nearest. `slot` names where it may be kept. With
    `bits` it is on the grid of W, which has codes of so many bits.
    """

    stored: Stored
    lora_A: Tensor
    lora_B: Tensor
    scale: float
    seed: Tensor | None
    dtype: torch.dtype
    slot: int = effective_cache.NONE
    bits: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        """(R, C)."""
        return self.lora_B.shape[0], self.lora_A.shape[1]

    def whole(self, *, last: bool = False) -> Tensor:
        """All of it. `last`: it is not needed again after this use."""
        kept = self._kept(last=last)
        return self.make() if kept is None else kept

    def blocks(self, *, last: bool = False) -> Iterator[tuple[int, int, Tensor]]:
        """First row, last row (excluded) and content of each block; without a slot it never exists as a whole.

        A block is valid until the next one is asked for.
        """
        kept, (rows, columns) = self._kept(last=last), self.shape
        # in whole steps of `_fill`, so that the numbers are those of `make` to the last bit
        size = min(self._rows_at_once() * (MULTIPLIED_BYTES // MADE_BYTES), rows)
        buffer = self.lora_A.new_empty(size if kept is None else 0, columns, dtype=self.dtype)
        for first in range(0, rows, size):
            end = min(first + size, rows)
            yield first, end, self._fill(buffer[: end - first], first) if kept is None else kept[first:end]

    def make(self, into: Tensor | None = None) -> Tensor:
        """Compute it, whatever is kept; in the place of an older one if that is given."""
        like = self.lora_A.new_empty(0, dtype=self.dtype)
        fits = into is not None and (into.shape, into.dtype, into.device) == (self.shape, self.dtype, like.device)
        if into is None or not fits or into.is_inference():  # inference tensors stay read-only elsewhere
            into = like.new_empty(self.shape)
        if kernel.available(self.stored.values, self.dtype):
            return kernel.write(self.stored, self.lora_A, self.lora_B, self.scale, self.seed, into, self.bits)
        return self._fill(into, 0)

    def _kept(self, *, last: bool) -> Tensor | None:
        seed = () if self.seed is None else (self.seed,)
        operands = self.stored.values, self.lora_A, self.lora_B, *seed
        return effective_cache.use(self.slot, operands, self.scale, self.dtype, self.make, last=last)

    def _rows_at_once(self) -> int:
        """Rows that are computed in one step."""
        rows, columns = self.shape
        return max(MADE_BYTES // (4 * columns), 1) if self.lora_A.device.type == "cpu" else rows

    def _fill(self, target: Tensor, first: int) -> Tensor:
        """Write the rows from `first` on into `target`: the plain version, which the kernel is held against."""
        if self.bits:
            return self._fill_on_grid(target, first)
        columns = self.shape[1]
        size = min(self._rows_at_once(), len(target))
        mask, rounded = self.lora_A.new_empty(size, columns), target.dtype != self.lora_A.dtype
        exact = torch.empty_like(mask) if rounded or self.seed is not None else target
        for begin in range(0, len(target), size):
            part = target[begin : begin + size]
            start, end = first + begin, first + begin + len(part)
            weight = weight_rows(self.stored, self.shape, start, end, target.dtype)
            effective = part if exact is target else exact[: len(part)]
            with torch.autocast(weight.device.type, enabled=False):  # it would multiply in 16 bits
                torch.mm(self.lora_B[start:end] * self.scale, self.lora_A, out=effective)
            # the mask as numbers: a product with a bool tensor takes several times as long
            torch.addcmul(weight, effective, torch.ne(weight, 0, out=mask[: len(part)]), out=effective)
            if self.seed is not None:
                part.copy_(rounding.stochastic_bfloat16(effective, self.seed, start * columns))
            elif rounded:
                part.copy_(effective)
        return target

    def _fill_on_grid(self, target: Tensor, first: int) -> Tensor:
        """The same, quantisation-aware."""
        groups = packed.scales_rows(self.stored, 0, 0).scale.shape[1]
        grid = Grid(self.bits, self.shape[1] // groups, self.stored.zero_point is None)
        factor = self.lora_A.double()
        size = min(self._rows_at_once(), len(target))
        for begin in range(0, len(target), size):
            part = target[begin : begin + size]
            start, end = first + begin, first + begin + len(part)
            scales = packed.scales_rows(self.stored, start, end)
            weight = weight_rows(self.stored, self.shape, start, end, torch.float64)
            with torch.autocast(weight.device.type, enabled=False):
                update = (self.lora_B[start:end].double() * self.scale) @ factor
            effective = torch.addcmul(weight, update, (weight != 0).double())
            part.copy_(values(codes_of(effective, scales, grid), scales, target.dtype))
        return target
