"""Several sources of samples in one order: each has its turns by its weight, whatever the seed and the data.

The turns are Tijdeman's (The chairman assignment problem, 1980). With shares w_i of k sources, of which the source i
has had x_i of the first n - 1 turns, the n-th goes, of those with

    z_i = w_i n - x_i >= 1 / (2k - 2)

to the one whose turn is due first: that of the smallest (1 - 1 / (2k - 2) - z_i) / w_i, and of equal ones to the first.
Then after any number n of samples |x_i - w_i n| <= 1 - 1 / (2k - 2) < 1: each source has had its share, rounded. The
arithmetic is that of whole numbers, so it is the same on every machine and after any number of turns.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice
from math import lcm
from typing import Any

from lors_cli.artifacts import digest
from lors_cli.data.example import Example
from lors_cli.data.samples import BEHIND, Held, Streamed


def shares(weights: Sequence[float]) -> list[Fraction]:
    """The weights, as they are written in decimals, as exact parts of their sum."""
    exact = [Fraction(repr(weight)) for weight in weights]
    return [weight / sum(exact) for weight in exact]


def turns(weights: Sequence[float], taken: Sequence[int]) -> Iterator[int]:
    """Whose turn it is, without end, after each of at least two sources has had as many turns as `taken` says."""
    had, number, last = list(taken), sum(taken), 2 * len(weights) - 2
    parts = shares(weights)
    whole = lcm(*(part.denominator for part in parts))
    counts = [int(part * whole) for part in parts]  # of `whole` turns
    while True:
        number += 1
        turn, least = -1, 0
        for source, count in enumerate(counts):
            due = last * (count * number - had[source] * whole)
            wait = (last - 1) * whole - due  # by `count` it is the time until the turn must come
            if due >= whole and (turn < 0 or wait * counts[turn] < least * count):
                turn, least = source, wait
        had[turn] += 1
        yield turn


@dataclass(frozen=True)
class Part:
    """One source of a mixture: its key in the config and its path, its weight, and its samples in their order."""

    key: str
    path: str
    weight: float
    samples: Held | Streamed


@dataclass
class _Reading:
    """What an iteration has given out: samples and tokens of each source, and the last samples one by one."""

    samples: list[int]
    tokens: list[int]
    last: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=BEHIND))  # sources, and their tokens


class Mixed:
    """The samples of several sources in their turns; each source keeps the order that it has by itself.

    Args:
        parts: the sources, at least two.

    Attributes:
        ended: the source that had no sample left for its turn, which ends the mixture.

    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts, self.ended = parts, ""
        self._weights = [part.weight for part in parts]
        self._reading = self._begin()

    def _begin(self) -> _Reading:
        return _Reading([0] * len(self.parts), [0] * len(self.parts))

    def starting_at(self, position: int, state: dict[str, Any] | None = None) -> Iterator[Example]:
        """The samples from `position` on, until a source whose turn it is has none left.

        Args:
            position: of the first sample.
            state: what `state` gave for this position; without it the turns are counted from the start.

        Raises:
            RequestError: a row cannot be used.

        """
        reading = self._begin()
        if state:
            reading.samples, reading.tokens = list(state["samples"]), list(state["tokens"])
        else:
            for turn in islice(turns(self._weights, reading.samples), position):
                reading.samples[turn] += 1
        states = state["sources"] if state else [None] * len(self.parts)
        orders = [
            part.samples.starting_at(count, known)
            for part, count, known in zip(self.parts, reading.samples, states, strict=True)
        ]
        self._reading, self.ended = reading, ""
        return self._samples(reading, orders)

    def _samples(self, reading: _Reading, orders: list[Iterator[Example]]) -> Iterator[Example]:
        for turn in turns(self._weights, reading.samples):
            sample = next(orders[turn], None)
            if sample is None:
                self.ended = f"{self.parts[turn].key} ({self.parts[turn].path})"
                return
            tokens = len(sample["input_ids"])
            reading.samples[turn] += 1
            reading.tokens[turn] += tokens
            reading.last.append((turn, tokens))
            yield sample

    def state(self, position: int) -> dict[str, Any]:
        """What each source has given before `position`, and where it goes on, as JSON; of positions not long past."""
        reading = self._reading
        since = sum(reading.samples) - position
        if not 0 <= since <= len(reading.last):
            raise ValueError(f"position {position} is none of the last {len(reading.last)}, which are remembered")
        samples, tokens = list(reading.samples), list(reading.tokens)
        for turn, size in islice(reversed(reading.last), since):
            samples[turn] -= 1
            tokens[turn] -= size
        sources = [part.samples.state(count) for part, count in zip(self.parts, samples, strict=True)]
        return {"samples": samples, "tokens": tokens, "sources": sources}

    def facts(self) -> list[dict[str, Any]]:
        """Of each source what was drawn from it, its share in all samples, and what it says of itself."""
        reading, every = self._reading, sum(self._reading.samples)
        return [
            {
                "path": part.path,
                "weight": part.weight,
                "drawn": samples,
                "drawn_tokens": tokens,
                "share": round(samples / max(every, 1), 6),
                **found,
            }
            for part, samples, tokens in zip(self.parts, reading.samples, reading.tokens, strict=True)
            for found in part.samples.facts()
        ]


def seed_of(seed: int, source: int) -> int:
    """The seed of the order within a source, so that two of them do not have their samples in the same order."""
    return int(digest.of_value([seed, source])[:8], 16)
