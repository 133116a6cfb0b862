"""Rounding to nearest: each weight gets the nearest code of its group's grid, whatever text the model is for."""

import torch
from torch import Tensor

from lors_cli.quantization.grid import Grid, codes_of, fit
from lors_cli.quantization.stored import Quantized


def quantize(weight: Tensor, statistic: None, grid: Grid, dtype: torch.dtype) -> Quantized:
    """Quantise `weight` (R, C), of any floating dtype, with scales in `dtype`; there is no statistic to look at.

    Raises:
        ValueError: the group size does not divide the columns.

    """
    scales = fit(weight, grid, dtype)
    return Quantized(codes_of(weight, scales, grid), *scales, grid)
