"""Weights as whole numbers of a few bits: the grid, how it is stored, and ways to round. Tensors in, tensors out.

``METHODS`` are those of the stage ``quantize``, named as in YAML, one file each. Nothing here imports torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from lors_cli.options import Options, option

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from lors_cli.quantization.grid import Grid, Scales
    from lors_cli.quantization.stored import Quantized


@dataclass(frozen=True)
class Method:
    """A way to round: ``quantize(weight, statistic, grid, dtype) -> Quantized`` in its module.

    `options` are what a config may set. `statistic` is what calibration gathers, a key of `pruning.statistics`; from
    it ``prepare(statistic, **options)`` in the module makes what all linears with one input share.
    """

    module: str
    equation: str
    paper: str
    options: type[Options] = Options
    statistic: str | None = None

    def prepare(self, statistic: Any, options: Options) -> Any:
        """What `quantize` needs of the `statistic` of one input; nothing of none."""
        if self.statistic is None:
            return None
        return import_module(self.module).prepare(statistic, **options.arguments())

    def quantize(
        self, weight: "Tensor", statistic: Any, grid: "Grid", dtype: "torch.dtype", scales: "Scales | None" = None
    ) -> "Quantized":
        """The quantised weight, with its scales in `dtype`; what is zero in `weight` (R, C) stays zero.

        A method that has a statistic also takes `scales` that are given.
        """
        given = (scales,) if scales else ()
        quantized: Quantized = import_module(self.module).quantize(weight, statistic, grid, dtype, *given)
        return quantized


class GptqOptions(Options):
    """The options of gptq."""

    act_order: bool = option(
        False,
        "whether columns are rounded in the order of their inputs' size, the largest first, instead of left to right",
        after="targets",
    )
    damping: float = option(
        0.01,
        "lambda, which is added to the Hessian's diagonal, as a fraction of the diagonal's mean",
        gt=0,
        le=1000,
    )


METHODS: Mapping[str, Method] = {
    "gptq": Method(
        "lors_cli.quantization.gptq",
        equation="round column by column; the error (w_j - v_j) / U_jj goes to the kept weights on the right",
        paper="Frantar et al. 2022, arXiv 2210.17323",
        options=GptqOptions,
        statistic="hessian",
    ),
    "rtn": Method(
        "lors_cli.quantization.rtn",
        equation="v = (clamp(round(w / s) + z) - z) * s, each weight by itself",
        paper="rounding to nearest",
    ),
}
