"""A frozen linear whose weight is kept as the codes of a quantised model; see `lors_cli.quantization.packed`."""

from typing import Any

import torch
from torch import Tensor, nn

from lors_cli.adapters import effective_cache
from lors_cli.adapters.lors import Operands
from lors_cli.adapters.packed_linear import PackedLinear
from lors_cli.quantization import packed
from lors_cli.quantization.stored import Quantized

MOST_BITS = 4  # of codes that the effective weight decodes


class Int4Linear(PackedLinear):
    """The place of a linear (R, C) of a quantised model. By itself it multiplies with the weight decoded to `dtype`.

    Neither forward nor backward keeps the decoded weight.

    Args:
        quantized: the weight, whose codes have at most four bits.
        bias: of the linear, a parameter that is shared, or None.
        dtype: of its inputs.

    Raises:
        ValueError: the codes have more bits.

    """

    def __init__(self, quantized: Quantized, bias: Any, dtype: torch.dtype) -> None:
        if quantized.grid.bits > MOST_BITS:
            raise ValueError(f"codes of at most {MOST_BITS} bits, got {quantized.grid.bits}")
        nn.Module.__init__(self)
        self.out_features, self.in_features = quantized.codes.shape
        self.bias, self.dtype, self.grid = bias, dtype, quantized.grid
        self._hold(packed.pack(quantized))

    def forward(self, x: Tensor) -> Tensor:
        """X (..., C) to Y (..., R)."""
        none = self.weight.new_empty(0, dtype=torch.promote_types(self.dtype, torch.float32))
        no_update = none.view(0, self.in_features), none.view(self.out_features, 0)
        operands = Operands(*self.stored, *no_update, None, 1.0, effective_cache.NONE)
        y: Tensor = torch.ops.lors.linear(x, self.bias, *operands)
        return y
