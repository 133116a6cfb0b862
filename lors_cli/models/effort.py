"""How much a stage computes and moves, from the shapes of its model: what an estimate of its time is made of.

Counted are the products of the linears and of the head, a multiply-add as two, and the solves of pruning and
quantising. Attention's own products and everything between the linears are left to the range of the estimate.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lors_cli.models import linears, load
from lors_cli.quantization import stored
from lors_cli.quantization.grid import Grid


@dataclass(frozen=True)
class Effort:
    """What a stage takes.

    Attributes:
        flops: operations in products, in the model's dtype.
        solves: operations in solves, in float32.
        streamed: bytes of memory that are read again and again: of the weights, for each token that is written.
        moved: bytes that are read from and written to files.
        kept: bytes of what the stage leaves.

    """

    flops: float = 0.0
    solves: float = 0.0
    streamed: float = 0.0
    moved: float = 0.0
    kept: float = 0.0

    def __add__(self, other: "Effort") -> "Effort":
        return Effort(*(one + two for one, two in zip(vars(self).values(), vars(other).values(), strict=True)))


def forward(skeleton: Any, tokens: int, *, head: bool = False) -> float:
    """The operations of a pass forward of so many tokens; of experts all are counted."""
    inside = sum(math.prod(shape) for shape in linears.shapes(skeleton).values())
    config = skeleton.config.get_text_config()
    return 2.0 * tokens * (inside + (config.vocab_size * config.hidden_size if head else 0))


def calibrated(
    skeleton: Any,
    dtype: str,
    windows: tuple[int, int] | None,
    targets: dict[str, float],
    *,
    hessian: bool,
    fits: bool,
    grid: Grid | None = None,
) -> Effort:
    """Pruning or quantising block by block.

    Args:
        skeleton: the model.
        dtype: of its weights.
        windows: how many calibration windows of how many tokens, if there are any.
        targets: the linears, each with the share of its weights that is kept.
        hessian: whether H = X^T X of the inputs is gathered, and one solve for each linear uses its inverse.
        fits: whether the kept weights of each row are solved for, one system for each row.
        grid: to which the targets are rounded, if they are.

    """
    shapes = {name: shape for name, shape in linears.shapes(skeleton).items() if name in targets}
    tokens = math.prod(windows) if windows else 0
    solves = 0.0
    for name, (rows, columns) in shapes.items():
        if hessian or fits:
            solves += 2.0 * tokens * columns**2
        if hessian:
            solves += 2.0 * columns**3 + 2.0 * rows * columns**2
        if fits:
            solves += rows * (columns * targets[name]) ** 3 / 3
    size = load.weight_bytes(skeleton, dtype)
    made = size - _saved(skeleton, targets, grid) if grid else size
    return Effort(flops=2 * forward(skeleton, tokens), solves=solves, moved=2.0 * (size + made), kept=made)


def _saved(skeleton: Any, targets: Iterable[str], grid: Grid) -> int:
    """How many bytes fewer a model takes whose `targets` are quantised on a grid."""
    every, saved = linears.all_linears(skeleton), 0
    for name in targets:
        weight = every[name].weight
        parts = stored.layout((weight.shape[0], weight.shape[1]), grid, weight.dtype).values()
        saved += weight.nbytes - sum(math.prod(shape) * dtype.itemsize for shape, dtype in parts)
    return saved


def trained(
    skeleton: Any, dtype: str, tokens: int, forwards: int, numbers: int, *, recompute: bool, whole: bool, held: int = 0
) -> Effort:
    """A training.

    Args:
        skeleton: the model.
        dtype: of its frozen weights.
        tokens: on which it is trained.
        forwards: micro-batches; for each the effective weights are made and read.
        numbers: that are trained.
        recompute: whether blocks run again in backward.
        whole: whether the weights themselves are trained.
        held: tokens of all measurements of the held-out loss.

    """
    once = forward(skeleton, tokens, head=True)
    size = load.weight_bytes(skeleton, dtype)
    passes = 2 + bool(recompute) + bool(whole)
    return Effort(
        flops=passes * once + forward(skeleton, held, head=True),
        streamed=6.0 * size * forwards,
        moved=size + 4.0 * numbers,
        kept=4.0 * numbers,
    )


def merged(size: float) -> Effort:
    """Reading a model of `size` bytes, writing it with an adapter in it, and reading both again for the proof."""
    return Effort(moved=5.0 * size, kept=size)


def measured(skeleton: Any, dtype: str, tokens: int, generated: int) -> Effort:
    """Evaluating a model on so many tokens, and letting it write so many, one after another."""
    size = load.weight_bytes(skeleton, dtype)
    return Effort(flops=forward(skeleton, tokens, head=True), streamed=float(size) * generated, moved=2.0 * size)
