"""RIA: score_ij = (abs(W_ij) / sum of row i + abs(W_ij) / sum of column j) * norm(X_j) ** a; no update.

Zhang et al. 2024, "Plug-and-Play: An Efficient Post-training Pruning Method for Large Language Models", ICLR 2024.
The first factor, the relative importance, keeps whole inputs and outputs from being emptied; a = 0.5 is the paper's
choice. Its channel permutation for N:M is in `permutation`.
"""

from torch import Tensor

from lors_cli.sparsity.mask import keep_largest
from lors_cli.sparsity.pattern import Pattern


def score(weight: Tensor, statistic: Tensor, *, exponent: float = 0.5) -> Tensor:
    """The importance of each weight, (R, C), in the dtype of `statistic`.

    Args:
        weight: (R, C).
        statistic: (C,), the L2 norm of each input feature over the calibration tokens, float32.
        exponent: a, what the norm is raised to.

    """
    # not in bf16: sums over thousands of numbers would be off, and the products would tie
    size = weight.to(statistic.dtype).abs()
    rows, columns = size.sum(dim=1, keepdim=True), size.sum(dim=0)
    # a sum of zero is over zeros alone, which score 0 and not 0 / 0
    relative = size / rows.where(rows > 0, 1) + size / columns.where(columns > 0, 1)
    return relative * statistic**exponent


def prune(weight: Tensor, statistic: Tensor, pattern: Pattern, *, exponent: float = 0.5) -> Tensor:
    """Zero the weights of `weight` (R, C) with the lowest `score`.

    A fraction is ranked over the whole matrix, the published code's default. That code removes the score at the
    threshold too, one weight more than the ``floor(fraction * R * C)`` here.

    Args:
        weight: (R, C).
        statistic: (C,), the L2 norm of each input feature over the calibration tokens, float32.
        pattern: what to leave.
        exponent: a, what the norm is raised to.

    """
    return weight.where(keep_largest(score(weight, statistic, exponent=exponent), pattern, per_row=False), 0)
