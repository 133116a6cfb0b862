"""Pruning methods: tensors in, tensors out.

Every method is ``prune(weight, statistic, pattern, **options) -> weight``; its row in ``METHODS`` names the statistic
that calibration gathers for it (see `statistics`) and the options that a config may set.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from lors_cli.pruning import magnitude, sparsegpt, wanda


@dataclass(frozen=True)
class Method:
    """One row of the registry."""

    prune: Callable[..., Tensor]
    statistic: str | None
    equation: str
    paper: str
    options: tuple[str, ...] = ()


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
    ),
    "sparsegpt": Method(
        prune=sparsegpt.prune,
        statistic="hessian",
        equation="score = w_j^2 / U_jj^2, U^T U = (2 X^T X + lambda I)^-1; the error goes to the columns on the right",
        paper="Frantar and Alistarh 2023, arXiv 2301.00774",
        options=("damping", "block_size"),
    ),
}
