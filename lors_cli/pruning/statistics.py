"""What calibration gathers about the inputs X (N, C) of a linear, one batch at a time, in float32.

``STATISTICS`` maps the name that a pruning method asks for to the class that gathers it.
"""

import math

import torch
from torch import Tensor


class InputNorm:
    """The L2 norm of each input feature over all tokens, (C,)."""

    def __init__(self) -> None:
        self.tokens = 0
        self._sum = torch.zeros(())

    def add(self, inputs: Tensor) -> None:
        """Take in `inputs` (..., C)."""
        x = inputs.reshape(-1, inputs.shape[-1]).float()
        self._sum = self._sum.to(x.device) + x.square().sum(dim=0)
        self.tokens += len(x)

    def value(self) -> Tensor:
        """(C,), float32."""
        return self._sum.sqrt()


class Hessian:
    """The Hessian of the layer's squared error, 2 X^T X / samples, (C, C).

    A running mean, sample by sample, as in SparseGPT's published code: see `sparsegpt` for why the order matters.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self._samples = 0
        self._mean = torch.zeros(())

    def add(self, inputs: Tensor) -> None:
        """Take in `inputs`, (samples, length, C) or (length, C) for one."""
        samples, columns = (len(inputs) if inputs.dim() == 3 else 1), inputs.shape[-1]
        if self._samples == 0:
            self._mean = torch.zeros(columns, columns, device=inputs.device)
        x = inputs.reshape(-1, columns).t()
        self._mean *= self._samples / (self._samples + samples)
        self._samples += samples
        x = math.sqrt(2 / self._samples) * x.float()
        self._mean += x.matmul(x.t())
        self.tokens += x.shape[1]

    def value(self) -> Tensor:
        """(C, C), float32."""
        return self._mean


STATISTICS = {"input_norm": InputNorm, "hessian": Hessian}
