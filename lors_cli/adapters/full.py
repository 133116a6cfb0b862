"""Full: W' = W + D * M with M = (W != 0); the update D (R, C) is as large as the weight and is trained as a whole.

Continual pre-training that keeps the zeros. It is not small, as other adapters are: in float32 the update, its
gradient and AdamW's moments take 16 bytes a weight. The `align` stage uses it, and it is the upper baseline for the
low-rank methods.
"""

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from lors_cli.adapters.base import Adapter


class Full(Adapter):
    """The masked update of every weight, added before the product with X; `rank` and `alpha` have no meaning here."""

    parameter_names = ("delta",)

    def __init__(self, linear: Any, **options: Any) -> None:
        super().__init__(linear, **options)
        self.delta = self.new_parameter(*self.shape)

    def forward(self, x: Tensor) -> Tensor:
        """X (..., C) to Y (..., R)."""
        return F.linear(x, self.effective_weight(self.linear.weight), self.linear.bias)

    def effective_weight(self, weight: Tensor) -> Tensor:
        """W + D * M, with W's support."""
        return (weight.to(self.delta.dtype) + self.delta * (weight != 0)).to(weight.dtype)

    @classmethod
    def shapes(cls, out_features: int, in_features: int, rank: int) -> dict[str, tuple[int, int]]:
        """The update delta (R, C), whatever the rank."""
        return {"delta": (out_features, in_features)}
