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


def removed(count: int, ratio: float) -> int:
    """How many of `count` parts a ratio below 1 removes: rounded down, as LLM-Pruner does, so that one is left."""
    return int(count * ratio + 1e-9)


def random_kept(count: int, ratio: float, generator: torch.Generator) -> list[int]:
    """The parts that stay when as many as `ratio` says are drawn without regard to anything."""
    return sorted(torch.randperm(count, generator=generator)[removed(count, ratio) :].tolist())


def best_kept(importance: Tensor, ratio: float) -> list[int]:
    """The parts that stay when the least important go; of equals the later ones."""
    order = torch.argsort(importance, descending=True, stable=True)
    return sorted(order[: len(importance) - removed(len(importance), ratio)].tolist())


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
