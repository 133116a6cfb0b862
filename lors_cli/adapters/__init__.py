"""Adapter methods: modules around a frozen linear. ``METHODS`` is the registry; reading it does not import torch.

docs/add-a-method.md shows how to add one.
"""

from collections import ChainMap
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any, Literal

from lors_cli.options import Options, option

if TYPE_CHECKING:
    from lors_cli.adapters.base import Adapter


class DropoutOptions(Options):
    """The options of formulations that compute the update as a term of its own."""

    dropout: float = option(
        0.0,
        "the probability of dropping an input of the update",
        without="computes with the effective weight and does not have a path to drop",
        off=0.0,
        after="alpha",
        ge=0,
        lt=1,
    )


class CheckpointingOptions(Options):
    """The options of formulations that save tensors of the weight's size for backward."""

    adapter_checkpointing: bool | Literal["reentrant"] = option(
        False,
        "whether backward computes the method's own tensors again instead of keeping them (SQFT-gc, SPP-gc); reentrant"
        " does it as older checkpoints of PyTorch do",
        without="does not save tensors that it could recompute",
        off=False,
        after="gradient_checkpointing",
    )


class OnGridOptions(Options):
    """The options of formulations that compute with one effective weight, which can be put on a grid."""

    quantization_aware: bool = option(
        False,
        "whether the effective weight is rounded to the grid of a quantised model (base: int4), so that the merged"
        " model is the trained one to the last bit (QA-SparsePEFT)",
        without="does not compute with an effective weight that keeps the zeros of a quantised one",
        off=False,
        after="base",
    )


class SQFTOptions(OnGridOptions, CheckpointingOptions):
    """The options of SQFT."""


ZeroInit = Literal["spp_beta", "spp_alpha", "both", "none"]


class AblationOptions(Options):
    """The options of SPP's ablations, which each of its formulations has."""

    zero_init: ZeroInit | None = option(
        None,
        "which factor starts at zero; spp_beta, and without it spp_alpha, if left out. With both nothing is"
        " learnt; with none the training starts from another model than the pruned one",
        without="does not have spp_alpha and spp_beta",
        after="init_steps",
    )
    spp_beta: bool = option(
        True,
        "whether there is spp_beta, a factor for each row",
        without="does not have spp_alpha and spp_beta",
        off=True,
    )

    def faults(self) -> Iterator[tuple[str, str, str]]:
        """A start of spp_beta where there is none."""
        if not self.spp_beta and self.zero_init in ("spp_beta", "both"):
            expected = "zero_init: spp_alpha or none, because with spp_beta: false there is no spp_beta"
            yield "zero_init", expected, "write zero_init: spp_alpha"


class SPPOptions(DropoutOptions, CheckpointingOptions, AblationOptions):
    """The options of SPP as it is listed."""


class SPPColumnsOptions(DropoutOptions, AblationOptions):
    """The options of SPP by slices of columns."""


class LoRSOptions(OnGridOptions):
    """The options of LoRS."""

    merge_cache: Literal["auto", "off", "full"] = option(
        "auto",
        "which effective weights are kept within an optimiser step: auto keeps those that fit into free memory",
        without="does not keep effective weights",
        off="off",
        after="base",
    )
    merge_rounding: Literal["nearest", "stochastic"] = option(
        "nearest",
        "how effective weights are rounded to bfloat16; with stochastic, an update of less than half a unit in the last"
        " place of a weight still has an effect, on average",
        without="does not round an effective weight of its own",
        off="nearest",
    )

    def arguments(self) -> dict[str, Any]:
        """The cache is the training's; the adapter asks only whether it rounds stochastically."""
        return {"stochastic": self.merge_rounding == "stochastic", "quantization_aware": self.quantization_aware}

    def faults(self) -> Iterator[tuple[str, str, str]]:
        """Two roundings at once."""
        if self.quantization_aware and self.merge_rounding == "stochastic":
            expected = "merge_rounding: nearest, because quantization_aware puts effective weights on a grid"
            yield "merge_rounding", expected, "write merge_rounding: nearest"


@dataclass(frozen=True)
class Formulation:
    """A way to compute a method.

    `implementation` is MODULE:CLASS, imported on first use; `bases` are the forms in which it can have the frozen
    weight: as it is ("dense"), without its zeros ("packed"), in 4 bits ("nf4"), or as the codes of a quantised model
    ("int4").
    """

    implementation: str
    options: type[Options] = Options
    bases: tuple[str, ...] = ("dense",)

    @property
    def class_name(self) -> str:
        """The name of the class."""
        return self.implementation.partition(":")[2]

    @property
    def adapter(self) -> "type[Adapter]":
        """The class."""
        module, _, name = self.implementation.partition(":")
        adapter: type[Adapter] = getattr(import_module(module), name)
        return adapter

    def mistake(self) -> str | None:
        """What is wrong with the row; None if nothing is. The class is imported."""
        try:
            adapter = self.adapter
        except (ImportError, AttributeError) as error:
            return f"{self.implementation}, which cannot be imported: {error}"
        if tuple(adapter.bases) != self.bases:
            return f"bases {self.bases}, where {self.class_name} has {adapter.bases}"
        taken: set[str] = set()
        for kind in adapter.__mro__:  # a class may pass on what it does not take itself
            if "__init__" in vars(kind):
                parameters = signature(vars(kind)["__init__"]).parameters
                taken |= parameters.keys()
                if not any(one.kind is Parameter.VAR_KEYWORD for one in parameters.values()):
                    break
        idle = [name for name in self.options.model_construct().arguments() if name not in taken]
        return f"the option {idle[0]}, which {self.class_name} does not take" if idle else None


@dataclass(frozen=True)
class Method:
    """One row of the registry.

    `formulations`: ways to compute the same, the first one by default. `keeps_zeros`: the effective weight has the
    support of the pruned one. `low_rank`: the update is a function of lora_B @ lora_A, so that lora_A can start from
    data, by default as `init` says. `has_rank`: a rank decides on the size of the update. `peft_type`: what
    adapter_config.json says; plain PEFT applies only "LORA" and refuses the others. `learning_rate`: AdamW's, for a
    config that leaves it out; methods that are compared at one rate are not compared fairly (docs/recovery.md).
    `recoverable`: the update of the weights that pruning kept is s BA, so that LoRAM can give it to the original.
    """

    formulations: dict[str, Formulation]
    keeps_zeros: bool
    equation: str
    paper: str
    peft_type: str
    low_rank: bool = True
    has_rank: bool = True
    init: str = "random"
    learning_rate: float = 2e-4
    recoverable: bool = False

    def formulation(self, name: str | None = None) -> Formulation:
        """The formulation of that name; the first one without a name."""
        return self.formulations[name or next(iter(self.formulations))]

    @property
    def adapter(self) -> "type[Adapter]":
        """The class of the first formulation."""
        return self.formulation().adapter


METHODS = {
    "lors": Method(
        formulations={
            "fused": Formulation("lors_cli.adapters.lors:LoRS", LoRSOptions, ("dense", "packed", "int4")),
            "listing": Formulation("lors_cli.adapters.lors_listing:LoRSListing"),
        },
        keeps_zeros=True,
        equation="W' = (W + s BA) * M; own backward: saves X, rebuilds W', straight-through gradients for A and B",
        paper="Hu et al. 2025, arXiv 2501.08582",
        peft_type="LORS",
        init="gradient",
        learning_rate=4e-3,
        recoverable=True,
    ),
    "spp": Method(
        formulations={
            "listing": Formulation("lors_cli.adapters.spp:SPP", SPPOptions),
            "columns": Formulation("lors_cli.adapters.spp:SPPColumns", SPPColumnsOptions),
            "merged": Formulation("lors_cli.adapters.spp_fused:SPPFused", AblationOptions),
        },
        keeps_zeros=True,
        equation="W' = W + s W * repeat(alpha, R/r) * beta",
        paper="Lu et al. 2024, arXiv 2405.16057",
        peft_type="SPP",
        low_rank=False,
        learning_rate=4e-2,
    ),
    "sqft": Method(
        formulations={"listing": Formulation("lors_cli.adapters.sqft:SQFT", SQFTOptions, ("dense", "int4"))},
        keeps_zeros=True,
        equation="W' = W + s (BA) * M, by autograd",
        paper="Munoz et al. 2024, arXiv 2410.03750",
        peft_type="SQFT",
        learning_rate=5e-3,
        recoverable=True,
    ),
    "lora": Method(
        formulations={"eager": Formulation("lors_cli.adapters.lora:LoRA", DropoutOptions, ("dense", "nf4", "int4"))},
        keeps_zeros=False,
        equation="Y = X W^T + s (X A^T) B^T; merged densely, or masked only at the merge (LoRA*)",
        paper="Hu et al. 2021, arXiv 2106.09685",
        peft_type="LORA",
        learning_rate=5e-3,
        recoverable=True,
    ),
    "full": Method(
        formulations={"masked": Formulation("lors_cli.adapters.full:Full")},
        keeps_zeros=True,
        equation="W' = W + D * M, D (R, C) trained as a whole: no low-rank product, the upper baseline",
        paper="masked fine-tuning of every weight",
        peft_type="FULL",
        low_rank=False,
        has_rank=False,
    ),
}

# The form of an adapter that no training makes: what `lors recover` writes with `mask: kept`.
MASKED = "loram"
RECOVERED = Method(
    formulations={"kept": Formulation("lors_cli.adapters.loram:LoRAM")},
    keeps_zeros=False,
    equation="W' = W0 + s (BA) * M, with the original W0 and the mask M of the pruned model",
    paper="Zhang et al. 2025, arXiv 2502.13533",
    peft_type="LORAM",
)
ON_DISK = ChainMap(METHODS, {MASKED: RECOVERED})
