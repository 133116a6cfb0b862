"""What `lors bench` compares: every way to train a sparse linear, by name, each with its cost in the roofline's terms.

Costs are those of a linear of R x C weights, N tokens and rank r. Products are counted in RCN and rRC multiply-adds.
What elementwise work moves is counted in numbers of the weights' width over the R x C weights and over the RN and CN
activations, and in bytes of masks over R x C: each operation reads its operands and writes its result once.
"""

from dataclasses import dataclass, field, replace
from typing import Any

GROUP = 128  # weights of a row that share a scale, where that divides its inputs


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
    """A method in one formulation, on frozen weights in the form `base`.

    `saved` are (numbers over RC, bytes over RC, numbers over RN) kept besides X.
    """

    label: str
    forward: Work
    backward: Work
    method: str | None = None
    formulation: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    base: str = "dense"
    cached: bool = False
    saved: tuple[int, int, int] = (0, 0, 0)


def _backward(work: Work) -> Work:
    """The products and merges of `work`, and the products for dA and dB, which read dY and X twice."""
    return replace(work, outputs=2, inputs=2)


# A forward that multiplies with W', made by one kernel, by one from packed weights, or by addmm, != and mul.
# A weight without zeros has 9 of its 16 bits, and a code at half zeros, with its share of the scales, 3.125.
_FUSED, _UNPACKED, _LISTED = Work(merges=1, weights=2.0), Work(merges=1, weights=1.5625), Work(1, 1, 7.0, masks=2)
_DECODED = 1.1953125  # numbers read and written for each weight that is decoded
_FROM_CODES = Work(merges=1, weights=_DECODED)
_SPP = Work(gemms=2, weights=8.0, outputs=3)
_RECOMPUTED: dict[str, Any] = {"adapter_checkpointing": True}
_REENTRANT: dict[str, Any] = {"adapter_checkpointing": "reentrant"}

VARIANTS = {
    "frozen": Variant("frozen (lower bound)", Work(), Work()),
    "lora": Variant("LoRA, eager", Work(outputs=6, inputs=1), Work(outputs=4, inputs=5), "lora", "eager"),
    "lora-int4": Variant(
        "LoRA, int4 base",
        Work(weights=_DECODED, outputs=6, inputs=1),
        Work(weights=_DECODED, outputs=4, inputs=5),
        "lora",
        "eager",
        base="int4",
    ),
    "lors": Variant("LoRS", _FUSED, _backward(_FUSED), "lors", "fused"),
    "lors-cached": Variant("LoRS, merged once per window", Work(), _backward(Work()), "lors", "fused", cached=True),
    "lors-packed": Variant("LoRS, packed base", _UNPACKED, _backward(_UNPACKED), "lors", "fused", base="packed"),
    "lors-int4": Variant("LoRS, int4 base", _FROM_CODES, _backward(_FROM_CODES), "lors", "fused", base="int4"),
    "lors-listing": Variant("LoRS, paper's listing", _LISTED, _backward(_LISTED), "lors", "listing"),
    "sqft": Variant("SQFT", _LISTED, Work(2, 2, 4.5, masks=2), "sqft", "listing", saved=(1, 1, 0)),
    "sqft-gc": Variant("SQFT-gc", _LISTED, Work(2, 3, 11.5, masks=4), "sqft", "listing", options=_RECOMPUTED),
    "sqft-gc-reentrant": Variant(
        "SQFT-gc, re-entrant", _LISTED, Work(3, 3, 11.5, masks=4), "sqft", "listing", options=_REENTRANT
    ),
    "sqft-int4": Variant(
        "SQFT, int4 base",
        _FROM_CODES,
        # W' for dX; then the gradient of the update in float32, and the weight decoded again for its mask
        Work(2, 3, 8.0 + 2 * _DECODED, masks=2),
        "sqft",
        "listing",
        base="int4",
    ),
    "spp": Variant("SPP, listing", _SPP, Work(3, weights=11.0, inputs=3), "spp", "listing", saved=(3, 0, 0)),
    "spp-gc": Variant("SPP-gc", _SPP, Work(3, weights=19.0, inputs=3), "spp", "listing", options=_RECOMPUTED),
    "spp-gc-reentrant": Variant(
        "SPP-gc, re-entrant", _SPP, Work(4, weights=19.0, inputs=3), "spp", "listing", options=_REENTRANT
    ),
    "spp-columns": Variant(
        "SPP, Eq. 7", Work(2, outputs=7, slices=3), Work(2, outputs=5, slices=8), "spp", "columns", saved=(0, 0, 1)
    ),
    "spp-merged": Variant("SPP, one product", Work(weights=2.0), Work(2, weights=4.0), "spp", "merged"),
}
