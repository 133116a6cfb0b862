"""The search of ranks on losses that can all be listed."""

import itertools
import math
import random

import pytest

from lors_cli.training.hill_climb import Ranks, climb, middle

RANKS = [16, 12, 8, 4]
NAMES = ["q", "k", "v"]
BUDGET = {"evaluations": 20, "neighbours": 3, "changes": 2}


def every() -> list[Ranks]:
    return [dict(zip(NAMES, ranks, strict=True)) for ranks in itertools.product(RANKS, repeat=len(NAMES))]


def table(seed: int) -> dict[tuple[int, ...], float]:
    """A random loss for all ranks."""
    numbers = random.Random(f"losses {seed}")
    return {tuple(ranks.values()): numbers.random() for ranks in every()}


@pytest.mark.parametrize("seed", range(10))
def test_what_is_found_is_the_best_of_what_was_measured_and_never_worse_than_the_start(seed: int) -> None:
    losses, seen = table(seed), []

    def loss(ranks: Ranks) -> float:
        seen.append(dict(ranks))
        return losses[tuple(ranks.values())]

    found = climb(NAMES, RANKS, loss, seed=seed, **BUDGET)
    assert seen[0] == dict.fromkeys(NAMES, 12)
    assert len(seen) == found.evaluations == len({tuple(ranks.values()) for ranks in seen}) == 20
    assert found.first_loss == losses[12, 12, 12]
    assert found.loss == losses[tuple(found.ranks.values())] == min(losses[tuple(ranks.values())] for ranks in seen)
    assert found.loss <= found.first_loss


@pytest.mark.parametrize("seed", range(5))
def test_a_turn_stays_near_the_best_ranks_before_it(seed: int) -> None:
    losses, seen = table(seed), []

    def loss(ranks: Ranks) -> float:
        seen.append(ranks)
        return losses[tuple(ranks.values())]

    climb(NAMES, RANKS, loss, seed=seed, **BUDGET)
    for place, ranks in enumerate(seen[1:]):
        before = seen[: place // 3 * 3 + 1]
        best = min(before, key=lambda one: losses[tuple(one.values())])
        assert 1 <= sum(ranks[name] != best[name] for name in NAMES) <= 2


def test_with_losses_enough_and_all_linears_changing_it_is_the_best_of_all() -> None:
    losses = table(0)
    found = climb(
        NAMES, RANKS, lambda ranks: losses[tuple(ranks.values())], seed=0, evaluations=1000, neighbours=4, changes=3
    )
    assert found.evaluations <= len(losses)
    assert found.loss == min(losses.values())


def test_a_convex_loss_is_climbed_down_by_steps_of_one_linear() -> None:
    def loss(ranks: Ranks) -> float:
        return math.fsum((rank - 16) ** 2 for rank in ranks.values())

    found = climb(NAMES, RANKS, loss, seed=0, evaluations=40, neighbours=3, changes=1)
    assert found.ranks == dict.fromkeys(NAMES, 16)


def test_the_same_seed_searches_alike_and_another_one_does_not() -> None:
    seen: dict[int, list[Ranks]] = {}
    for run, seed in enumerate((3, 3, 4)):
        losses = table(0)
        seen[run] = []

        def loss(ranks: Ranks, run: int = run, losses: dict[tuple[int, ...], float] = losses) -> float:
            seen[run].append(ranks)
            return losses[tuple(ranks.values())]

        climb(NAMES, RANKS, loss, seed=seed, **BUDGET)
    assert seen[0] == seen[1] != seen[2]


@pytest.mark.parametrize(("ranks", "expected"), [([4, 2], 4), ([1, 4, 2], 2), ([32, 28, 24, 20, 16], 24)])
def test_the_start_is_the_middle_rank(ranks: list[int], expected: int) -> None:
    assert middle(ranks) == expected
