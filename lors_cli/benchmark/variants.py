"""What `lors bench` compares: every way to train a sparse linear, by name, each with its cost in the roofline's terms.

Costs are per linear of R x C weights, N tokens, rank r. Products are counted in RCN and rRC multiply-adds; what
elementwise work moves, in numbers of the weights' width over the R x C weights and over the RN and CN activations, and
in bytes of masks over R x C: each operation reads its operands and writes its result once.
"""

from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Work:
    """One direction of one linear."""

    gemms: int = 1  # products of RCN multiply-adds
    merges: int = 0  # products of rRC
    weights: float = 0.0  # numbers moved for each of the R x C weights
    masks: int = 0  # bytes of masks moved for each of them
    outputs: int = 0  # numbers moved for each of the RN outputs
    inputs: int = 0  # numbers moved for each of the CN inputs
    slices: int = 0  # numbers moved for each of the CN inputs, r times


@dataclass(frozen=True)
class Variant:
    """A method in one formulation; `saved` are (numbers over RC, bytes over RC, numbers over RN) kept besides X."""

    label: str
    forward: Work
    backward: Work
    method: str | None = None
    formulation: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    packed: bool = False
    cached: bool = False
    saved: tuple[int, int, int] = (0, 0, 0)


_LISTED = Work(merges=1, weights=7.0, masks=2)  # addmm, !=, mul
_FACTORS = Work(outputs=2, inputs=2)  # dA and dB read dY and X twice
_SPP = Work(gemms=2, weights=8.0, outputs=3)

VARIANTS = {
    "frozen": Variant("frozen (lower bound)", Work(), Work()),
    "lora": Variant(
        "LoRA, eager", Work(outputs=6, inputs=1), Work(outputs=4, inputs=5), method="lora", formulation="eager"
    ),
    "lors": Variant(
        "LoRS",
        Work(merges=1, weights=2.0),
        replace(_FACTORS, merges=1, weights=2.0),
        method="lors",
        formulation="fused",
    ),
    "lors-cached": Variant(
        "LoRS, merged once per window", Work(), _FACTORS, method="lors", formulation="fused", cached=True
    ),
    "lors-packed": Variant(
        "LoRS, packed base",
        Work(merges=1, weights=1.5625),
        replace(_FACTORS, merges=1, weights=1.5625),
        method="lors",
        formulation="fused",
        packed=True,
    ),
    "lors-listing": Variant(
        "LoRS, paper's listing",
        _LISTED,
        replace(_FACTORS, merges=1, weights=7.0, masks=2),
        method="lors",
        formulation="listing",
    ),
    "sqft": Variant(
        "SQFT",
        _LISTED,
        Work(gemms=2, merges=2, weights=4.5, masks=2),
        method="sqft",
        formulation="listing",
        saved=(1, 1, 0),
    ),
    "sqft-gc": Variant(
        "SQFT-gc",
        _LISTED,
        Work(gemms=2, merges=3, weights=11.5, masks=4),
        method="sqft",
        formulation="listing",
        options={"checkpoint": True},
    ),
    "sqft-gc-reentrant": Variant(
        "SQFT-gc, re-entrant",
        _LISTED,
        Work(gemms=3, merges=3, weights=11.5, masks=4),
        method="sqft",
        formulation="listing",
        options={"checkpoint": "reentrant"},
    ),
    "spp": Variant(
        "SPP, listing",
        _SPP,
        Work(gemms=3, weights=11.0, inputs=3),
        method="spp",
        formulation="listing",
        saved=(3, 0, 0),
    ),
    "spp-gc": Variant(
        "SPP-gc",
        _SPP,
        Work(gemms=3, weights=19.0, inputs=3),
        method="spp",
        formulation="listing",
        options={"checkpoint": True},
    ),
    "spp-gc-reentrant": Variant(
        "SPP-gc, re-entrant",
        _SPP,
        Work(gemms=4, weights=19.0, inputs=3),
        method="spp",
        formulation="listing",
        options={"checkpoint": "reentrant"},
    ),
    "spp-columns": Variant(
        "SPP, Eq. 7",
        Work(gemms=2, outputs=7, slices=3),
        Work(gemms=2, outputs=5, slices=8),
        method="spp",
        formulation="columns",
        saved=(0, 0, 1),
    ),
    "spp-merged": Variant(
        "SPP, one product",
        Work(weights=2.0),
        Work(gemms=2, weights=4.0),
        method="spp",
        formulation="merged",
    ),
}
