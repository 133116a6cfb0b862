"""Pruning methods: tensors in, tensors out.

Every method that leaves zeros is ``prune(weight, statistic, pattern, **options) -> weight``; its row in ``METHODS``
names the statistic that calibration gathers for it (see `statistics`) and the options that a config may set. What all
linears with the same input share is computed once by ``prepare(statistic, **options)`` where a method has that. A
structured method chooses the parts of a block that stay.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lors_cli.pruning import from_mask, magnitude, ria, sparsegpt, structured, wanda


@dataclass(frozen=True)
class Method:
    """One row of the registry.

    A method with a `score` can permute the inputs of a linear for N:M. One with `stacks` prunes to N:M row by row, so
    that the linears of one input can be pruned as one. A `structured` one chooses the parts of a block that stay.
    """

    prune: Callable[..., Any]
    statistic: str | None
    equation: str
    paper: str
    options: tuple[str, ...] = ()
    prepare: Callable[..., Any] | None = None
    prepare_options: tuple[str, ...] = ()
    score: Callable[..., Tensor] | None = None
    stacks: bool = False
    structured: bool = False

    @property
    def calibrated(self) -> bool:
        """Whether calibration gathers its statistic."""
        return self.statistic not in (None, "mask")


METHODS = {
    "magnitude": Method(
        prune=magnitude.prune,
        statistic=None,
        equation="score = |W|, ranked over the whole matrix",
        paper="Han et al. 2015, arXiv 1506.02626",
    ),
    "wanda": Method(
        prune=wanda.prune,
        statistic="input_norm",
        equation="score = |W_ij| * ||X_j||_2, ranked within each output row",
        paper="Sun et al. 2024, arXiv 2306.11695",
        options=("variant",),
    ),
    "ria": Method(
        prune=ria.prune,
        statistic="input_norm",
        equation="score = (|W_ij| / sum_i + |W_ij| / sum_j) * ||X_j||_2^a, ranked over the whole matrix",
        paper="Zhang et al. 2024, ICLR, openreview Tr0lPx9woF",
        options=("exponent",),
        score=ria.score,
    ),
    "sparsegpt": Method(
        prune=sparsegpt.prune,
        statistic="hessian",
        equation="score = w_j^2 / U_jj^2, U^T U = (2 X^T X + lambda I)^-1; the error goes to the columns on the right",
        paper="Frantar and Alistarh 2023, arXiv 2301.00774",
        options=("block_size",),
        prepare=sparsegpt.prepare,
        prepare_options=("damping",),
        stacks=True,
    ),
    "from_mask": Method(
        prune=from_mask.prune,
        statistic="mask",
        equation="kept where prune.mask is true or nonzero: a mask file, or a sparse model",
        paper="masks learnt elsewhere, such as MaskLLM (Fang et al. 2024, arXiv 2409.17481)",
    ),
    "structured_random": Method(
        prune=structured.random_kept,
        statistic=None,
        equation="whole attention groups and MLP channels of the middle blocks go, drawn at random",
        paper="LoRAM-Rand, Zhang et al. 2025, ICLR, arXiv 2502.13533",
        options=("ratio", "keep_first", "keep_last"),
        structured=True,
    ),
    "structured_taylor": Method(
        prune=structured.best_kept,
        statistic="gradient",
        equation="the same with the least importance |w dL/dw|, joined over the linears of a group or channel",
        paper="LLM-Pruner, Ma et al. 2023, arXiv 2305.11627, as LoRAM-Stru uses it",
        options=("ratio", "keep_first", "keep_last", "importance", "aggregation"),
        structured=True,
    ),
}
