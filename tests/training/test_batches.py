"""Which samples each step and each process takes."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest

from lors_cli.config.align import Align
from lors_cli.config.methods import complete
from lors_cli.config.mixture import TrainingDataset
from lors_cli.config.train import Train
from lors_cli.data.example import Example
from lors_cli.errors import RequestError
from lors_cli.training.batches import Batches, Batching


class Numbers:
    """Sample n is the token n + 1, as often as n mod 3 says."""

    ended = ""

    def __init__(self, count: int) -> None:
        self.count = count

    def starting_at(self, position: int, state: dict[str, Any] | None = None) -> Iterator[Example]:
        for number in range(position, self.count):
            ids = [number + 1] * (number % 3 + 1)
            yield {"input_ids": ids, "labels": ids}

    def state(self, position: int) -> dict[str, Any]:
        return {"position": position}

    def facts(self) -> list[dict[str, Any]]:
        return [{}]


def taken(monkeypatch: pytest.MonkeyPatch, count: int, batches: Any, steps: int | None = None) -> list[set[int]]:
    """The samples of each step, over all of `count` processes."""
    shares = []
    for rank in range(count):
        monkeypatch.setenv("WORLD_SIZE", str(count))
        monkeypatch.setenv("RANK", str(rank))
        shares.append([batch["input_ids"] for batch in batches()])
    each = len(shares[0]) // (steps or 1)
    return [
        {int(row[0]) for share in shares for batch in share[start : start + each] for row in batch}
        for start in range(0, len(shares[0]), each)
    ]


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("first", [0, 2])
def test_a_step_takes_the_same_samples_on_any_number_of_processes(
    monkeypatch: pytest.MonkeyPatch, count: int, first: int
) -> None:
    steps = taken(monkeypatch, count, lambda: Batches(Numbers(99), Batching(5, 12, 2), 0, first, None), 5 - first)
    assert steps == [set(range(12 * step + 1, 12 * step + 13)) for step in range(first, 5)]


def test_tokens_are_counted_without_padding_and_a_step_is_whole() -> None:
    batches = Batches(Numbers(11), Batching(5, 4, 2), padding=0, first=0, state=None)
    padded = list(batches)
    assert (len(padded), batches.given) == (4, 2)  # two steps of two; three samples are left, which are no step
    assert batches.tokens == sum(number % 3 + 1 for number in range(8))
    assert sum(batch["input_ids"].numel() for batch in padded) > batches.tokens
    assert batches.state(3) == {"position": 12}
    assert len(list(islice(Batches(Numbers(99), Batching(3, 4, 2), 0, 0, None), 9))) == 6


@pytest.mark.parametrize("kind", [Train, Align])
def test_processes_that_cannot_share_a_batch_evenly_are_told(
    monkeypatch: pytest.MonkeyPatch, kind: type[Train]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    section = complete(kind)(method="lors", dataset=TrainingDataset(path="x"), batch_size=4)
    with pytest.raises(
        RequestError, match=rf"{section.key}\.micro_batch_size[^$]*batch of 4 samples among 3 processes"
    ):
        Batching.of(section, 1)
