"""What the structured methods share: how many parts of a block stay, and what a part consists of.

Parts are attention groups (a key/value head with its query heads) and MLP channels. What is removed together is a part
of several linears: the heads of a group with their rows of q, k and v and their columns of o; a channel with its rows
of gate and up and its column of down.
"""

from dataclasses import dataclass

from torch import Tensor

EPSILON = 1e-9  # so that 10 * 0.7 counts as 7


@dataclass(frozen=True)
class Member:
    """A linear whose rows, or else its columns, consist of equal pieces, one of each part."""

    weight: Tensor  # (R, C)
    gradient: Tensor  # of the loss, (R, C)
    by_rows: bool


def leaves_a_part(count: int, ratio: float) -> bool:
    """Whether a ratio leaves at least one of `count` parts without being rounded."""
    return count * (1 - ratio) + EPSILON >= 1


# The published counts round down what goes of the groups, and what stays of the channels.
def groups_left(count: int, ratio: float) -> int:
    """How many of `count` attention groups a ratio below 1 leaves: at least one, since what goes is rounded down."""
    return count - int(count * ratio + EPSILON)


def channels_left(count: int, ratio: float) -> int:
    """How many of `count` MLP channels a ratio below 1 leaves: at least one, otherwise rounded down."""
    return max(int(count * (1 - ratio) + EPSILON), 1)
