"""Which attention groups and MLP channels a block keeps: at random, or by first-order importance.

Ma et al. 2023, "LLM-Pruner: On the Structural Pruning of Large Language Models", arXiv 2305.11627, section 3.2. What is
removed together (the heads of a group with their parts of q, k, v and o; a channel of gate, up and down) has one
importance. To first order, removing a weight w changes the loss by |w dL/dw|; the paper's element form adds up the
magnitudes, its vector form takes the magnitude of the sum over a row or a column.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

FORMS = ("element", "vector")
AGGREGATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda parts: parts.sum(0),
    "prod": lambda parts: parts.prod(0),
    "max": lambda parts: parts.amax(0),
    "last": lambda parts: parts[-1],
}


# The published counts round down what goes of the groups, and what stays of the channels.
EPSILON = 1e-9  # for 10 * 0.7 and the like


def groups_left(count: int, ratio: float) -> int:
    """How many of `count` attention groups a ratio below 1 leaves: at least one, since what goes is rounded down."""
    return count - int(count * ratio + EPSILON)


def channels_left(count: int, ratio: float) -> int:
    """How many of `count` MLP channels a ratio below 1 leaves: at least one, otherwise rounded down."""
    return max(int(count * (1 - ratio) + EPSILON), 1)


def random_kept(count: int, left: int, generator: torch.Generator) -> list[int]:
    """Which of the parts stay when `left` of them are drawn without regard to anything."""
    return sorted(torch.randperm(count, generator=generator)[count - left :].tolist())


def best_kept(importance: Tensor, left: int) -> list[int]:
    """Which of the parts stay when all but `left` go, the least important first; of equals the later ones."""
    return sorted(torch.argsort(importance, descending=True, stable=True)[:left].tolist())


def part_importance(weight: Tensor, gradient: Tensor, parts: int, *, by_rows: bool, form: str) -> Tensor:
    """The importance of each of the equal `parts` of a linear's rows or columns.

    Args:
        weight: (R, C).
        gradient: of the loss in it, (R, C).
        parts: how many equal pieces the rows, or the columns, consist of.
        by_rows: whether a part is some rows; else some columns.
        form: "element": sum of |w g| over the part. "vector": each row or column counts |sum of w g|, summed over those
            of the part.

    Returns:
        (parts,)

    """
    change = weight.float() * gradient.float()
    along = 1 if by_rows else 0
    vectors = change.abs().sum(along) if form == "element" else change.sum(along).abs()
    return vectors.view(parts, -1).sum(1)


def importance(changes: Mapping[str, Tensor], aggregation: str) -> Tensor:
    """One importance for what is removed together, from those of its linears, each (parts,), in the order of computing.

    Args:
        changes: by the linear's place.
        aggregation: how they are joined: "sum", "prod", "max" or "last", the one that computes last.

    """
    return AGGREGATIONS[aggregation](torch.stack(list(changes.values())))
