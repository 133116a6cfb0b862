"""The parts that go are those with the least first-order importance.

Ma et al. 2023, "LLM-Pruner: On the Structural Pruning of Large Language Models", arXiv 2305.11627, section 3.2. To
first order, removing a weight w changes the loss by |w dL/dw|. The paper's element form adds up these magnitudes over
what goes together; its vector form takes the magnitude of the sum over a row or a column.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lors_cli.pruning.structured import Member

AGGREGATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda parts: parts.sum(0),
    "prod": lambda parts: parts.prod(0),
    "max": lambda parts: parts.amax(0),
    "last": lambda parts: parts[-1],
}


def keep(
    members: Sequence[Member],
    count: int,
    left: int,
    generator: torch.Generator,
    *,
    importance: str = "element",
    aggregation: str = "sum",
) -> list[int]:
    """The numbers, rising, of the `left` most important of `count` parts; of equal ones the first stay.

    Args:
        members: the linears that the parts consist of, in the order in which a block computes them.
        count: how many parts there are.
        left: how many stay.
        generator: not needed here.
        importance: "element" or "vector"; see `member_importance`.
        aggregation: how the importances in the members are joined: "sum", "prod", "max", or "last", the one of the
            member that computes last.

    """
    each = torch.stack([member_importance(member, count, importance) for member in members])
    joined = AGGREGATIONS[aggregation](each)
    return sorted(torch.argsort(joined, descending=True, stable=True)[:left].tolist())


def member_importance(member: Member, count: int, form: str) -> Tensor:
    """The importance of the piece that each of the `count` parts has of one member, (count,).

    "element": sum of |w g| over the piece. "vector": each row, or column, of it counts |sum of w g|.
    """
    change = member.weight.float() * member.gradient.float()
    along = 1 if member.by_rows else 0
    vectors = change.abs().sum(along) if form == "element" else change.sum(along).abs()
    return vectors.view(count, -1).sum(1)
