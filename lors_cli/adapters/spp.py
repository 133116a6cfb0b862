"""SPP: W' = W + s W * repeat(alpha, R/r) * beta, with alpha (r, C) random and beta (R, 1) zero at the start.

Lu et al. 2024, "SPP: Sparsity-Preserved Parameter-Efficient Fine-Tuning for Large Language Models", arXiv 2405.16057.
Each row of alpha serves R/r consecutive rows of W, so the rank must divide R. The product with W keeps every zero.
Three ways to compute the same (multiply-adds with R x C weights and N tokens, what is saved besides parameters):

    listing    Y = F(X, W) + s F(dropout(X), W * alpha * beta)          2RCN + 3RCN   X and three R x C
    columns    Eq. 7: the second term in r slices of R/r outputs        2RCN + 2RCN   X and Y
    merged     Y = F(X, W'), in `lors_cli.adapters.spp_fused`            RCN + 2RCN   X

Each of them can start otherwise, and do without beta, as in the paper's ablations (its tables 4 and 8):

    zero_init        spp_beta by default; spp_alpha, both or none. What is not zero is drawn as alpha is. With both zero
                     every gradient is zero, for each factor's has the other one in it: nothing is ever learnt
    spp_beta: false  W' = W + s W * repeat(alpha, R/r), where beta stays 1; alpha then starts at zero

With ``adapter_checkpointing`` the listing's second term is computed again in backward instead of saved ("SPP-gc"). The
LoRS paper's backward count of it is SQFT-gc's: the separate F(X, W) costs one product more.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lors_cli.adapters.base import Adapter


class SPP(Adapter):
    """A multiplicative update: one learned factor for each weight, built from a few columns and rows."""

    parameter_names = ("spp_alpha", "spp_beta")

    spp_beta: Tensor

    def __init__(
        self, linear: nn.Linear, *, zero_init: str | None = None, spp_beta: bool = True, **options: Any
    ) -> None:
        super().__init__(linear, **options)
        rows, columns = self.shape
        self.spp_alpha, beta = self.new_parameter(self.rank, columns), self.new_parameter(rows, 1)
        zero = zero_init or ("spp_beta" if spp_beta else "spp_alpha")
        if zero not in ("spp_alpha", "both"):
            nn.init.kaiming_uniform_(self.spp_alpha, a=5**0.5)
        if not spp_beta:  # a buffer: FSDP would take a parameter that is not trained for a frozen weight
            self.register_buffer("spp_beta", torch.ones_like(beta))
            return
        self.spp_beta = beta
        if zero not in ("spp_beta", "both"):
            nn.init.kaiming_uniform_(beta, a=5**0.5)

    @classmethod
    def shapes(cls, out_features: int, in_features: int, rank: int) -> dict[str, tuple[int, int]]:
        """spp_alpha (rank, C) and spp_beta (R, 1)."""
        if rank > out_features or out_features % rank:
            raise ValueError(f"a rank that divides {out_features}, the number of rows (SPP repeats rows of alpha)")
        return {"spp_alpha": (rank, in_features), "spp_beta": (out_features, 1)}

    @classmethod
    def trained(
        cls, out_features: int, in_features: int, rank: int, *, spp_beta: bool = True, **options: Any
    ) -> dict[str, tuple[int, int]]:
        """The same, without spp_beta where there is none."""
        shapes = cls.shapes(out_features, in_features, rank)
        return shapes if spp_beta else {"spp_alpha": shapes["spp_alpha"]}

    def forward(self, x: Tensor) -> Tensor:
        """X (..., C) to Y (..., R)."""
        y: Tensor = self.linear(x) + self.scale * self._checkpointed(self._update, x)
        return y

    def _update(self, x: Tensor) -> Tensor:
        weight = self.linear.weight
        rows, columns = self.shape
        # repeated to the weight's shape as in the listing, which is what autograd then keeps
        alpha = self.spp_alpha.to(weight.dtype).repeat_interleave(rows // self.rank, dim=0)
        beta = self.spp_beta.to(weight.dtype).repeat_interleave(columns, dim=1)
        return F.linear(self.dropout(x), weight * alpha * beta)

    def effective_weight(self, weight: Tensor) -> Tensor:
        """W + s W * alpha * beta, with W's support, in the adapter's precision and rounded once."""
        update = weight * self.spp_alpha.repeat_interleave(weight.shape[0] // self.rank, dim=0) * self.spp_beta
        return (weight.to(update.dtype) + self.scale * update).to(weight.dtype)


class SPPColumns(SPP):
    """SPP by the paper's Eq. 7: each slice of outputs sees X scaled by its row of alpha; no factor of W's size."""

    def _update(self, x: Tensor) -> Tensor:
        x, alpha = self.dropout(x), self.spp_alpha.to(x.dtype)
        slices = self.linear.weight.chunk(self.rank)
        product = torch.cat([F.linear(x * alpha[i], slices[i]) for i in range(self.rank)], dim=-1)
        return product * self.spp_beta.to(product.dtype).squeeze(1)
