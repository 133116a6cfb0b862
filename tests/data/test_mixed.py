import json
import random
from collections.abc import Callable
from fractions import Fraction
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from lors_cli.data import samples
from lors_cli.data.example import Example
from lors_cli.data.mixed import Mixed, Part, seed_of, shares, turns
from lors_cli.data.samples import Held, Streamed
from lors_cli.data.sources import Source

WEIGHTS = [
    [1, 1],
    [0.5, 0.5],
    [1, 1, 1],
    [0.7, 0.2, 0.1],
    [3, 1e-9],
    [1e-9, 1e9],
    [1, 2, 3, 4, 5, 6],
    [0.1] * 7,
    [1 / 3, 2 / 3],
    [5e-324, 1],
]


@pytest.mark.parametrize("weights", [*WEIGHTS, *([random.Random(k).random() for _ in range(k)] for k in range(2, 6))])
def test_after_any_number_of_samples_each_source_has_its_share_rounded(weights: list[float]) -> None:
    exact, had = shares(weights), [0] * len(weights)
    assert sum(exact) == 1
    most = 1 - Fraction(1, 2 * len(weights) - 2)
    for number, turn in enumerate(islice(turns(weights, had), 240), 1):
        had = [taken + (source == turn) for source, taken in enumerate(had)]
        assert all(abs(taken - share * number) <= most for taken, share in zip(had, exact, strict=True))
        if number % 60 == 0:  # what comes next follows from what has come
            again = islice(turns(weights, had), 20)
            assert list(again) == list(islice(turns(weights, [0] * len(weights)), number, number + 20))


def test_a_tiny_weight_has_its_turn_when_more_than_half_a_sample_is_due() -> None:
    weights = [1 - 1e-9, 1e-9]
    assert next(turns(weights, [499_999_999, 0])) == 0  # half a sample is due to both, and the first one has it
    assert next(turns(weights, [500_000_000, 0])) == 1
    assert list(islice(turns([1, 1, 1], [0, 0, 0]), 6)) == [0, 1, 2, 0, 1, 2]


LENGTH = 16


@pytest.fixture
def mixture(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Mixed]:
    """Rows that are held, a stream of shards, and a stream that is packed, 4 to 2 to 1."""
    monkeypatch.setattr(samples, "CHUNK_WINDOWS", 3)
    monkeypatch.setattr(samples, "CHUNK_ROWS", 5)
    for folder, shards in (("a", 3), ("b", 2)):
        (tmp_path / folder).mkdir()
        for shard in range(shards):
            rows = [{"text": f"{folder} {shard} " + "and so on " * (row % 7)} for row in range(9)]
            (tmp_path / folder / f"{shard}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(*, repeat: bool = True, seed: int = 0) -> Mixed:
        examples: list[Example] = [{"input_ids": [n] * (n % 5 + 2), "labels": [n] * (n % 5 + 2)} for n in range(11)]
        streams = [
            Streamed(
                Source(path=str(tmp_path / folder), key=f"train.dataset[{place}]"),
                *(tokenizer, LENGTH, None, seed_of(seed, place)),
                packing=packing,
                repeat=repeat,
            )
            for place, folder, packing in ((1, "a", False), (2, "b", True))
        ]
        parts: list[Held | Streamed] = [Held(examples, seed_of(seed, 0)), *streams]
        return Mixed([Part(f"train.dataset[{n}]", "abc"[n], (4, 2, 1)[n], part) for n, part in enumerate(parts)])

    return make


def test_each_source_keeps_the_order_that_it_has_alone(mixture: Callable[..., Mixed]) -> None:
    drawn = list(islice(mixture().starting_at(0), 140))
    alone = [part.samples.starting_at(0) for part in mixture().parts]
    assert drawn == [next(alone[turn]) for turn in islice(turns([4, 2, 1], [0, 0, 0]), 140)]
    assert drawn != list(islice(mixture(seed=1).starting_at(0), 140))
    mixed = mixture()
    again = list(islice(mixed.starting_at(0), 140))
    assert again == drawn
    facts = mixed.facts()
    assert [one["drawn"] for one in facts] == [80, 40, 20]
    assert [one["share"] for one in facts] == [round(n / 7, 6) for n in (4, 2, 1)]
    assert sum(one["drawn_tokens"] for one in facts) == sum(len(sample["input_ids"]) for sample in drawn)
    assert facts[1]["drawn_tokens"] == 40 * LENGTH
    assert facts[1]["rows"] > 0
    assert facts[2]["format"] == "text"


def test_any_position_is_found_again(mixture: Callable[..., Mixed]) -> None:
    first, whole = mixture(), list[Example]()
    order = first.starting_at(0)
    early: list[dict[str, Any]] = []
    for _ in range(70):
        early.append(json.loads(json.dumps(first.state(len(whole)))))
        whole.append(next(order))
    for position in range(0, 70, 3):
        for state in (early[position], json.loads(json.dumps(first.state(position))), None):
            again = mixture()
            left = again.starting_at(position, state)
            assert list(islice(left, 70 - position)) == whole[position:]
            if state:  # what was drawn counts the samples before the interruption too
                counted = [(one["drawn"], one["drawn_tokens"]) for one in again.facts()]
                assert counted == [(one["drawn"], one["drawn_tokens"]) for one in first.facts()]
    with pytest.raises(ValueError, match="position 71"):
        first.state(71)


def test_the_source_that_ends_is_named(mixture: Callable[..., Mixed]) -> None:
    mixed = mixture(repeat=False)
    assert not mixed.ended
    drawn = list(mixed.starting_at(0))
    counts = [one["drawn"] for one in mixed.facts()]
    ended = next(n for n in count() if f"dataset[{n}]" in mixed.ended)
    assert mixed.ended == f"train.dataset[{ended}] ({'abc'[ended]})"
    assert counts[ended] == sum(1 for _ in mixture(repeat=False).parts[ended].samples.starting_at(0))
    assert len(drawn) == sum(counts)
    state = mixed.state(len(drawn) - 2)  # with repeat the same samples come first, and then that source once more
    onward = list(islice(mixture().starting_at(len(drawn) - 2, state), 20))
    assert onward[:2] == drawn[-2:]
    assert len(onward) == 20
