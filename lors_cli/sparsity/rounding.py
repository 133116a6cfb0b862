"""Deterministic stochastic rounding to bfloat16: up or down at random, so that the mean is exact.

Rounding to nearest loses an update far below half a unit in the last place of its weight ("dead zone"); this keeps its
mean. The random bits are a hash of the element's place and a seed: the same in forward, recomputation and backward, on
every device. The hash mixes 32 bits by multiplication and shifts (the constants are C. Wellons' "lowbias32").
"""

import torch
from torch import Tensor

FACTORS = (0x7FEB352D, 0x846CA68B)
_LOW = 0xFFFFFFFF


def stochastic_bfloat16(value: Tensor, seed: Tensor, first: int = 0) -> Tensor:
    """Round `value`, float32, to bfloat16.

    Args:
        value: of any shape.
        seed: a whole number, (), below 2^32.
        first: the number of the first element in the whole tensor, if `value` is a part of it.

    """
    number = torch.arange(first, first + value.numel(), device=value.device) & _LOW
    noise = mix(mix(number) ^ seed).view(value.shape) & 0xFFFF
    bits = value.contiguous().view(torch.int32).long() + noise  # a carry into the upper half rounds away from zero
    rounded = (bits & -0x10000).int().view(torch.float32)
    return rounded.where(value.isfinite(), value).bfloat16()


def mix(number: Tensor) -> Tensor:
    """Hash of 32-bit numbers, held in int64."""
    number = (number ^ (number >> 16)) * FACTORS[0] & _LOW
    number = (number ^ (number >> 15)) * FACTORS[1] & _LOW
    return number ^ (number >> 16)
