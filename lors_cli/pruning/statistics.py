"""What calibration gathers about the inputs X (N, C) of a linear, one batch at a time, in float32.

``STATISTICS`` maps the name that a pruning method asks for to the class that gathers it.
"""

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
    """The Hessian of the layer's squared error, 2 X^T X / N, (C, C). Dividing by N only keeps the numbers small."""

    def __init__(self) -> None:
        self.tokens = 0
        self._sum = torch.zeros(())

    def add(self, inputs: Tensor) -> None:
        """Take in `inputs` (..., C)."""
        x = inputs.reshape(-1, inputs.shape[-1]).float()
        if self._sum.dim() == 0:
            self._sum = x.new_zeros(x.shape[1], x.shape[1])
        self._sum.addmm_(x.T, x)
        self.tokens += len(x)

    def value(self) -> Tensor:
        """(C, C), float32."""
        return self._sum * (2 / self.tokens)


STATISTICS = {"input_norm": InputNorm, "hessian": Hessian}
