"""Hill climbing over the ranks of linears (SQFT, arXiv 2410.03750, after Shears, arXiv 2404.10934).

It starts from what their code calls the heuristic sub-adapter: the middle rank everywhere. A turn measures neighbours
of the best ranks so far, each with other ranks for a few linears that are drawn, and moves to the best one if it is
better. No ranks are measured twice.
"""

import random
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

DRAWS = 100  # of a neighbour, after which all of them count as measured

Ranks = dict[str, int]  # by the names of the linears


class Found(NamedTuple):
    """The best ranks, their loss, that of the start, and how many were measured."""

    ranks: Ranks
    loss: float
    first_loss: float
    evaluations: int


def climb(
    names: Collection[str],
    ranks: Collection[int],
    loss: Callable[[Ranks], float],
    *,
    evaluations: int,
    neighbours: int,
    changes: int,
    seed: int,
) -> Found:
    """Search ranks with a low loss; the same seed gives the same search.

    Args:
        names: of the linears.
        ranks: that each of them may have.
        loss: of the model with these ranks.
        evaluations: calls of `loss`, at most; fewer where no neighbour is left.
        neighbours: of a turn.
        changes: linears in which a neighbour differs, at most.
        seed: of the draws.

    """
    choices = sorted(ranks, reverse=True)
    at = dict.fromkeys(names, middle(choices))
    tried = {tuple(at.values())}
    first = best = loss(at)
    numbers = random.Random(seed)
    while left := evaluations - len(tried):
        turn: list[Ranks] = []
        while len(turn) < min(neighbours, left) and (one := _neighbour(at, choices, changes, tried, numbers)):
            tried.add(tuple(one.values()))
            turn.append(one)
        if not turn:
            break
        losses = [loss(one) for one in turn]
        if min(losses) < best:
            best = min(losses)
            at = turn[losses.index(best)]
    return Found(at, best, first, len(tried))


def middle(ranks: Collection[int]) -> int:
    """The rank in the middle, of an even number the larger of two."""
    return sorted(ranks, reverse=True)[(len(ranks) - 1) // 2]


def _neighbour(
    at: Ranks, choices: Sequence[int], changes: int, tried: Collection[tuple[int, ...]], numbers: random.Random
) -> Ranks | None:
    """Ranks that were not tried and differ from those `at` hand in at least one linear and at most `changes`."""
    for _ in range(DRAWS):
        changed = numbers.sample(list(at), numbers.randint(1, min(changes, len(at))))
        new = at | {name: numbers.choice([rank for rank in choices if rank != at[name]]) for name in changed}
        if tuple(new.values()) not in tried:
            return new
    return None
