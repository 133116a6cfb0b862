"""A linear that stays dense in a model that runs packed."""

import torch
from torch import Tensor, nn

from lors_cli.kernels import packed as kernel
from lors_cli.sparsity.packed import Stored


class DenseLinear(nn.Linear):
    """An `nn.Linear` that multiplies few inputs with the dense product of `lors_cli.kernels.packed`, which is faster.

    Args:
        linear: what it takes the place of; its weight and its bias are shared.

    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """``F.linear``; where a gradient may be asked for, by PyTorch."""
        weight, bias = self.weight, self.bias
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
            return super().forward(x)
        return kernel.multiply(Stored(weight), (self.out_features, self.in_features), x, bias)
