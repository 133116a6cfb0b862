"""A mask that was made elsewhere: learnt, or the support of another sparse model. The kept weights do not change."""

from torch import Tensor

from lors_cli.errors import LorsError
from lors_cli.sparsity import mask
from lors_cli.sparsity.pattern import Pattern


def prune(weight: Tensor, statistic: Tensor, pattern: Pattern | None) -> Tensor:
    """Keep the weights of `weight` (R, C) where the mask is true or nonzero.

    Args:
        weight: (R, C).
        statistic: the mask, (R, C), of any dtype.
        pattern: what the mask has to hold; None for anything.

    Raises:
        LorsError: the mask has another shape, holds NaN, keeps everything, or does not hold `pattern`.

    """
    if statistic.shape != weight.shape:
        raise LorsError(f"the mask has shape {tuple(statistic.shape)}, the weight {tuple(weight.shape)}")
    kept = statistic != 0
    if bool(statistic.isnan().any()) or bool(kept.all()):
        raise LorsError(
            f"the mask {'keeps every weight' if kept.all() else 'holds NaN'}; skip that linear, or mend the mask"
        )
    if pattern and not mask.holds(kept, pattern):
        raise LorsError(f"the mask does not hold {pattern}")
    return weight.where(kept, 0)
