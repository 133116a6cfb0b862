"""Pruning methods: tensors in, tensors out; one file a method, named as in YAML.

``METHODS`` leave zeros, ``STRUCTURED`` ones make blocks smaller; ``PROFILES`` spread a sparsity over blocks,
``REPAIRS`` exchange zeros afterwards, and ``UPDATES`` then change the kept weights. `rows` says what the functions of a
row get and return, and docs/add-a-method.md how to add one. Nothing here imports torch.
"""

from typing import Literal

from lors_cli.options import Options, option
from lors_cli.pruning.rows import Method, Profile, Repair, Row, StructuredMethod, Update

__all__ = [
    "METHODS",
    "PROFILES",
    "REPAIRS",
    "STRUCTURED",
    "UPDATES",
    "PermuteOptions",
    "StructuredOptions",
    "all_methods",
    "mistake",
]


class WandaOptions(Options):
    """The options of wanda."""

    variant: bool = option(
        False,
        "whether rows differ in sparsity: each loses the same share of the sum of its scores; not for N:M",
        after="block_size",
    )


class PermuteOptions(Options):
    """The options of a method whose module has a `score`."""

    permute: bool = option(
        False,
        "whether inputs are reordered so that N:M keeps more, where the linears before can absorb the order",
        after="exponent",
    )


class RiaOptions(PermuteOptions):
    """The options of ria."""

    exponent: float = option(0.5, "a, the power to which the input norms are raised", after="variant", ge=0, le=100)


class SparseGPTOptions(Options):
    """The options of sparsegpt."""

    damping: float = option(
        0.01,
        "lambda, which is added to the Hessian's diagonal, as a fraction of the diagonal's mean",
        after="repair_cycles",
        gt=0,
        le=1000,
    )
    block_size: int = option(128, "how many columns have their mask chosen together", ge=1, le=10**6)


class StructuredOptions(Options):
    """The options of every structured method."""

    ratio: float = option(
        ..., "the fraction of the attention groups and MLP channels that a block loses", after="permute", ge=0, lt=1
    )
    keep_first: int = option(4, "how many blocks at the start stay whole", ge=0, le=10**4)
    keep_last: int = option(2, "how many blocks at the end stay whole", ge=0, le=10**4)
    uniform: bool = option(
        False,
        "whether what keep_first and keep_last leave to the blocks between is spread evenly over all blocks: each"
        " loses ratio x (blocks - keep_first - keep_last) / blocks, and plain transformers loads the model",
        off=False,
    )


class TaylorOptions(StructuredOptions):
    """The options of structured_taylor."""

    importance: Literal["element", "vector"] = option(
        "element",
        "element adds up |w g| over the weights of a part; vector adds up |sum of w g| over its rows or columns",
    )
    aggregation: Literal["sum", "prod", "max", "last"] = option(
        "sum", "how the importances of the linears of a part are joined; last takes the linear that computes last"
    )


class OwlOptions(Options):
    """The options of the profile owl."""

    profile_range: float = option(
        0.08, "lambda: the sparsities of two blocks differ by at most twice this", after="profile", gt=0, lt=0.5
    )
    profile_outlier: float = option(5.0, "M: a score above M times the mean of its block is an outlier", gt=0, le=10**6)


class DsnotOptions(Options):
    """The options of the repair dsnot."""

    repair_cycles: int = option(
        50, "how many exchanges of weights are tried in each row", after="repair", ge=1, le=10**6
    )


class LeastSquaresOptions(Options):
    """The options of the update least_squares."""

    update_damping: float = option(
        0.1,
        "lambda, which holds the weights near where pruning left them, as a fraction of the mean of the Hessian's"
        " diagonal",
        after="update",
        gt=0,
        le=1000,
    )
    update_iterations: int = option(8, "at most so many steps of conjugate gradients", ge=1, le=10**6)
    update_tolerance: float = option(0.01, "the part of its first residual at which a row is solved", ge=0, lt=1)


METHODS = {
    "magnitude": Method(
        "lors_cli.pruning.magnitude",
        equation="score = |W|, ranked over the whole matrix",
        paper="Han et al. 2015, arXiv 1506.02626",
    ),
    "wanda": Method(
        "lors_cli.pruning.wanda",
        equation="score = |W_ij| * ||X_j||_2, ranked within each output row",
        paper="Sun et al. 2024, arXiv 2306.11695",
        options=WandaOptions,
        statistic="input_norm",
    ),
    "ria": Method(
        "lors_cli.pruning.ria",
        equation="score = (|W_ij| / sum_i + |W_ij| / sum_j) * ||X_j||_2^a, ranked over the whole matrix",
        paper="Zhang et al. 2024, ICLR, openreview Tr0lPx9woF",
        options=RiaOptions,
        statistic="input_norm",
    ),
    "sparsegpt": Method(
        "lors_cli.pruning.sparsegpt",
        equation="score = w_j^2 / U_jj^2, U^T U = (2 X^T X + lambda I)^-1; the error goes to the columns on the right",
        paper="Frantar and Alistarh 2023, arXiv 2301.00774",
        options=SparseGPTOptions,
        statistic="hessian",
        rounds=True,
        stacks=True,
    ),
    "from_mask": Method(
        "lors_cli.pruning.from_mask",
        equation="kept where prune.mask is true or nonzero: a mask file, or a sparse model",
        paper="masks learnt elsewhere, such as MaskLLM (Fang et al. 2024, arXiv 2409.17481)",
        reads_mask=True,
    ),
}

STRUCTURED = {
    "structured_random": StructuredMethod(
        "lors_cli.pruning.structured_random",
        equation="whole attention groups and MLP channels of the middle blocks go, drawn at random",
        paper="LoRAM-Rand, Zhang et al. 2025, ICLR, arXiv 2502.13533",
        options=StructuredOptions,
    ),
    "structured_taylor": StructuredMethod(
        "lors_cli.pruning.structured_taylor",
        equation="the same with the least importance |w dL/dw|, joined over the linears of a group or channel",
        paper="LLM-Pruner, Ma et al. 2023, arXiv 2305.11627, as LoRAM-Stru uses it",
        options=TaylorOptions,
        needs_gradients=True,
    ),
}

PROFILES = {
    "owl": Profile(
        "lors_cli.pruning.owl",
        equation="sparsity of block b = S + mean(d) - d_b, d the share of outliers among Wanda's scores, in a range",
        paper="Yin et al. 2024, ICML, arXiv 2310.05175",
        options=OwlOptions,
        statistic="input_norm",
    ),
}

REPAIRS = {
    "dsnot": Repair(
        "lors_cli.pruning.dsnot",
        equation="removed and kept weights are exchanged until a row's expected output is what it was",
        paper="Zhang et al. 2024, ICLR, arXiv 2310.08915",
        options=DsnotOptions,
        statistic="input_moments",
    ),
}

UPDATES = {
    "least_squares": Update(
        "lors_cli.pruning.least_squares",
        equation="min over W on the mask of tr[(W - W_d) H (W - W_d)^T] + lambda |W - W_0|^2, H = X^T X",
        paper="the problem of Boza 2024, arXiv 2401.02938, solved by conjugate gradients",
        options=LeastSquaresOptions,
        statistic="hessian",
    ),
}


def all_methods() -> dict[str, Method | StructuredMethod]:
    """What `prune.method` may name."""
    return {**METHODS, **STRUCTURED}


def mistake(row: Row) -> str | None:
    """What is wrong with a row of these registries; None if nothing is. Its module is imported."""
    return row.mistake(
        {*PermuteOptions.model_fields, *StructuredOptions.model_fields}, scores=issubclass(row.options, PermuteOptions)
    )
