"""Adapter methods: modules around a frozen linear. ``METHODS`` is the registry."""

from dataclasses import dataclass

from lors_cli.adapters.base import Adapter, LowRankAdapter
from lors_cli.adapters.full import Full
from lors_cli.adapters.lora import LoRA
from lors_cli.adapters.lors import LoRS
from lors_cli.adapters.lors_listing import LoRSListing
from lors_cli.adapters.packed_linear import PackedLinear
from lors_cli.adapters.spp import SPP, SPPColumns
from lors_cli.adapters.spp_fused import SPPFused
from lors_cli.adapters.sqft import SQFT

__all__ = [
    "METHODS",
    "SPP",
    "SQFT",
    "Adapter",
    "Full",
    "LoRA",
    "LoRS",
    "LowRankAdapter",
    "Method",
    "PackedLinear",
]


@dataclass(frozen=True)
class Method:
    """One row of the registry.

    `formulations`: ways to compute the same, the first one by default; each says which options it has.
    `keeps_zeros`: the effective weight has the support of the pruned one. `peft_type`: what adapter_config.json says;
    plain PEFT applies only "LORA" and refuses the others.
    """

    formulations: dict[str, type[Adapter]]
    keeps_zeros: bool
    equation: str
    paper: str
    peft_type: str

    @property
    def adapter(self) -> type[Adapter]:
        """The default formulation."""
        return next(iter(self.formulations.values()))

    @property
    def low_rank(self) -> bool:
        """Whether the update is a low-rank product, so that lora_A can start from data."""
        return issubclass(self.adapter, LowRankAdapter)

    @property
    def has_rank(self) -> bool:
        """Whether a rank decides on the size of the update."""
        return self.adapter.shapes(2, 2, 1) != self.adapter.shapes(2, 2, 2)


METHODS = {
    "lors": Method(
        formulations={"fused": LoRS, "listing": LoRSListing},
        keeps_zeros=True,
        equation="W' = (W + s BA) * M; own backward: saves X, rebuilds W', straight-through gradients for A and B",
        paper="Hu et al. 2025, arXiv 2501.08582",
        peft_type="LORS",
    ),
    "spp": Method(
        formulations={"listing": SPP, "columns": SPPColumns, "merged": SPPFused},
        keeps_zeros=True,
        equation="W' = W + s W * repeat(alpha, R/r) * beta",
        paper="Lu et al. 2024, arXiv 2405.16057",
        peft_type="SPP",
    ),
    "sqft": Method(
        formulations={"listing": SQFT},
        keeps_zeros=True,
        equation="W' = W + s (BA) * M, by autograd",
        paper="Munoz et al. 2024, arXiv 2410.03750",
        peft_type="SQFT",
    ),
    "lora": Method(
        formulations={"eager": LoRA},
        keeps_zeros=False,
        equation="Y = X W^T + s (X A^T) B^T; merged densely, or masked only at the merge (LoRA*)",
        paper="Hu et al. 2021, arXiv 2106.09685",
        peft_type="LORA",
    ),
    "full": Method(
        formulations={"masked": Full},
        keeps_zeros=True,
        equation="W' = W + D * M, D (R, C) trained as a whole: no low-rank product, the upper baseline",
        paper="masked fine-tuning of every weight",
        peft_type="FULL",
    ),
}
