"""SPP: W' = W + s W * repeat(alpha, R/r) * beta, with alpha (r, C) random and beta (R, 1) zero at the start.

Lu et al. 2024, "SPP: Sparsity-Preserved Parameter-Efficient Fine-Tuning for Large Language Models", arXiv 2405.16057.
Each row of alpha serves R/r consecutive rows of W, so the rank must divide R. The product with W keeps
every zero. Computed as in the paper, Y = F(X, W) + s F(dropout(X), W * alpha * beta); with ``checkpoint`` the second
term is computed again in backward instead of saved ("SPP-gc").
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lors_cli.adapters.base import Adapter


class SPP(Adapter):
    """A multiplicative update: one learned factor for each weight, built from a few columns and rows."""

    parameter_names = ("spp_alpha", "spp_beta")

    def __init__(self, linear: nn.Linear, **options: float) -> None:
        super().__init__(linear, **options)  # type: ignore[arg-type]
        rows, columns = linear.weight.shape
        self.spp_alpha = self.new_parameter(self.rank, columns)
        self.spp_beta = self.new_parameter(rows, 1)
        nn.init.kaiming_uniform_(self.spp_alpha, a=5**0.5)

    @classmethod
    def shapes(cls, out_features: int, in_features: int, rank: int) -> dict[str, tuple[int, int]]:
        """spp_alpha (rank, C) and spp_beta (R, 1)."""
        if rank > out_features or out_features % rank:
            raise ValueError(f"a rank that divides {out_features}, the number of rows (SPP repeats rows of alpha)")
        return {"spp_alpha": (rank, in_features), "spp_beta": (out_features, 1)}

    def forward(self, x: Tensor) -> Tensor:
        """X (..., C) to Y (..., R)."""
        if self.checkpoint and torch.is_grad_enabled():
            update: Tensor = checkpoint(self._update, x, use_reentrant=False)
        else:
            update = self._update(x)
        y: Tensor = self.linear(x) + self.scale * update
        return y

    def _update(self, x: Tensor) -> Tensor:
        return F.linear(self.dropout(x), self._product(self.linear.weight).to(x.dtype))

    def _product(self, weight: Tensor) -> Tensor:
        """W * repeat(alpha) * beta, (R, C), in the precision of the adapter."""
        repeats = weight.shape[0] // self.rank
        return weight * self.spp_alpha.repeat_interleave(repeats, dim=0) * self.spp_beta

    def merged_weight(self, weight: Tensor) -> Tensor:
        """W + s W * alpha * beta, with W's support."""
        update = self._product(weight)
        return (weight.to(update.dtype) + self.scale * update).to(weight.dtype)
