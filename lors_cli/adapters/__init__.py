"""Adapter methods: modules around a frozen linear. ``METHODS`` is the registry."""

from dataclasses import dataclass

from lors_cli.adapters.base import Adapter, LowRankAdapter
from lors_cli.adapters.lora import LoRA
from lors_cli.adapters.lors import LoRS
from lors_cli.adapters.spp import SPP
from lors_cli.adapters.sqft import SQFT

__all__ = ["METHODS", "SPP", "SQFT", "Adapter", "LoRA", "LoRS", "LowRankAdapter", "Method"]


@dataclass(frozen=True)
class Method:
    """One row of the registry.

    `keeps_zeros`: the merged weight has the support of the pruned one. `dropout`, `checkpoint`: the method has that
    option. `peft_type`: what adapter_config.json says; plain PEFT applies only "LORA" and refuses the others.
    """

    adapter: type[Adapter]
    keeps_zeros: bool
    equation: str
    paper: str
    peft_type: str
    dropout: bool = False
    checkpoint: bool = False

    @property
    def gradient_init(self) -> bool:
        """Whether ``init: gradient`` is defined: the update is a low-rank product."""
        return issubclass(self.adapter, LowRankAdapter)


METHODS = {
    "lors": Method(
        adapter=LoRS,
        keeps_zeros=True,
        equation="W' = (W + s BA) * M; own backward: saves X, rebuilds W', straight-through gradients for A and B",
        paper="Hu et al. 2025, arXiv 2501.08582",
        peft_type="LORS",
    ),
    "spp": Method(
        adapter=SPP,
        keeps_zeros=True,
        equation="W' = W + s W * repeat(alpha, R/r) * beta",
        paper="Lu et al. 2024, arXiv 2405.16057",
        peft_type="SPP",
        dropout=True,
        checkpoint=True,
    ),
    "sqft": Method(
        adapter=SQFT,
        keeps_zeros=True,
        equation="W' = W + s (BA) * M, by autograd",
        paper="Munoz et al. 2024, arXiv 2410.03750",
        peft_type="SQFT",
        checkpoint=True,
    ),
    "lora": Method(
        adapter=LoRA,
        keeps_zeros=False,
        equation="Y = X W^T + s (X A^T) B^T; merged densely, or masked only at the merge (LoRA*)",
        paper="Hu et al. 2021, arXiv 2106.09685",
        peft_type="LORA",
        dropout=True,
    ),
}
