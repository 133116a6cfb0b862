import gzip
import json
import random
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import PreTrainedTokenizerFast

from lors_cli import offline
from lors_cli.data import instructions, readers, samples
from lors_cli.data.example import Example
from lors_cli.data.readers import Row
from lors_cli.data.samples import Held, Streamed
from lors_cli.data.sources import Source
from lors_cli.errors import RequestError

LENGTH = 64
ROWS = 21
WORDS = ["the", "of", "a", "language", "model", "that", "reads", "rows", "from", "shards", "and", "counts", "them"]
load_dataset = datasets.load_dataset


def text(number: int) -> str:
    generator = random.Random(number)
    return f"{number} " + " ".join(generator.choices(WORDS, k=generator.randint(1, 30)))


def as_text(number: int) -> Row:
    return {"text": text(number)}


def as_chat(number: int) -> Row:
    turns = [{"role": "user", "content": "Go on."}, {"role": "assistant", "content": text(number)}]
    return {"messages": turns}


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Source]:
    """Four shards of `ROWS` rows in all, one of them compressed and one empty."""

    def write(row: Callable[[int], Row], **options: Any) -> Source:
        (tmp_path / "shards").mkdir(exist_ok=True)
        for name, numbers in (("a", range(8)), ("b", range(8, 17)), ("c", range(0)), ("d", range(17, ROWS))):
            lines = "".join(json.dumps(row(number)) + "\n" for number in numbers)
            if name == "b":
                (tmp_path / "shards" / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
            else:
                (tmp_path / "shards" / f"{name}.jsonl").write_text(lines)
        return Source(path=str(tmp_path / "shards"), key="train.dataset", **options)

    return write


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "CHUNK_WINDOWS", 3)
    monkeypatch.setattr(samples, "CHUNK_ROWS", 5)


def stream(source: Source, tokenizer: PreTrainedTokenizerFast, **options: Any) -> Streamed:
    return Streamed(source, tokenizer, options.pop("length", LENGTH), None, options.pop("seed", 0), **options)


def as_json(state: dict[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(state))
    assert plain == state
    return plain


def check_resuming(make: Callable[[], Streamed], count: int) -> None:
    """The first `count` samples come again from every position, with states taken when it came and some time later."""
    first = make()
    order = first.starting_at(0)
    whole: list[Example] = []
    early: list[dict[str, Any]] = []
    for _ in range(count):
        early.append(as_json(first.state(len(whole))))
        whole.append(next(order))
    for position in range(count):
        late = as_json(first.state(position))
        again = make()
        expected = whole[position : position + 8]
        assert list(islice(again.starting_at(position, late), len(expected))) == expected
        if early[position] != late:  # at the start of a chunk, which had not been read when the first was asked
            assert list(islice(make().starting_at(position, early[position]), 2)) == expected[:2]
    # what a resumed run says of itself is what the first one says
    assert (again.facts(), again.state(count - 1)) == (first.facts(), late)


def test_held_samples_are_shuffled_anew_in_each_pass() -> None:
    examples: list[Example] = [{"input_ids": [n], "labels": [n]} for n in range(10)]
    held = Held(examples, seed=1)
    order = [sample["input_ids"][0] for sample in islice(held.starting_at(0), 30)]
    passes = [order[:10], order[10:20], order[20:]]
    assert all(sorted(numbers) == list(range(10)) for numbers in passes)
    assert passes[0] != passes[1] != passes[2] != passes[0]
    for position in range(25):
        drawn = list(islice(held.starting_at(position, held.state(position)), 5))
        assert [sample["input_ids"][0] for sample in drawn] == order[position : position + 5]
    assert [s["input_ids"][0] for s in islice(Held(examples, seed=2).starting_at(0), 10)] != passes[0]
    assert len(held) == 10


@pytest.mark.parametrize(
    ("row", "packing", "limit"),
    [(as_text, False, None), (as_text, True, None), (as_chat, False, 18), (as_chat, True, None)],
)
def test_any_position_is_found_again(
    folder: Callable[..., Source],
    tokenizer: PreTrainedTokenizerFast,
    row: Callable[[int], Row],
    packing: bool,
    limit: int | None,
) -> None:
    source = folder(row, limit=limit)
    a_pass = sum(1 for _ in stream(source, tokenizer, packing=packing).starting_at(0))
    assert a_pass > 10  # several chunks
    check_resuming(lambda: stream(source, tokenizer, packing=packing, repeat=True), a_pass + 8)
    # the end is an end, whence ever it is reached
    once = stream(source, tokenizer, packing=packing)
    whole = list(once.starting_at(0))
    assert list(stream(source, tokenizer, packing=packing).starting_at(9)) == whole[9:]  # without a state
    for position in (0, a_pass - 1, a_pass, a_pass + 1):
        state = once.state(position)
        assert list(stream(source, tokenizer, packing=packing).starting_at(position, state)) == whole[position:]


@pytest.mark.parametrize("kind", ["chat", "text"])
def test_a_stream_has_the_samples_of_the_whole_data_set(
    folder: Callable[..., Source], tokenizer: PreTrainedTokenizerFast, kind: str
) -> None:
    source = folder(as_chat if kind == "chat" else as_text)
    data = stream(source, tokenizer, packing=kind == "text")
    streamed = list(data.starting_at(0))
    held, facts = instructions.examples(source, tokenizer, LENGTH, None, packing=kind == "text")
    assert streamed != held  # shuffled
    if kind == "chat":
        assert sorted(map(str, streamed)) == sorted(map(str, held))
    told = {name: facts.get(name, facts["examples"]) for name in ("documents", "unused", *instructions.COUNTS)}
    assert data.facts() == [{"format": kind, "rows": ROWS, **told}]
    other = list(stream(source, tokenizer, packing=kind == "text", seed=1).starting_at(0))
    assert other != streamed
    assert sorted(map(str, other)) == sorted(map(str, streamed))


def test_each_pass_over_a_chunk_has_its_own_order(
    folder: Callable[..., Source], tokenizer: PreTrainedTokenizerFast
) -> None:
    order = stream(folder(as_chat, limit=4), tokenizer, repeat=True).starting_at(0)
    passes = [[sample["input_ids"] for sample in islice(order, 4)] for _ in range(3)]
    assert sorted(passes[0]) == sorted(passes[1]) == sorted(passes[2])
    assert passes[0] != passes[1] != passes[2] != passes[0]


def test_joined_text_goes_on_from_chunk_to_chunk_and_pass_to_pass(
    folder: Callable[..., Source], tokenizer: PreTrainedTokenizerFast
) -> None:
    source = folder(as_text)
    data = stream(source, tokenizer, repeat=True)
    # in the order of the rows: a chunk's samples are shuffled among themselves only
    ordered = [sample for _, chunk, _ in islice(data._chunks(samples.Start()), 20) for sample in chunk]
    ids = [token for sample in ordered for token in sample["input_ids"]]
    joined = "\n\n".join([text(number) for number in range(ROWS)] * 9)
    assert joined.startswith(tokenizer.decode(ids))
    assert len(joined) / 9 < len(tokenizer.decode(ids))
    assert all(len(sample["input_ids"]) == LENGTH and sample["labels"] == sample["input_ids"] for sample in ordered)


@pytest.mark.parametrize("packing", [False, True])
def test_no_more_than_a_chunk_of_rows_is_held(
    folder: Callable[..., Source],
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
    packing: bool,
) -> None:
    source = folder(as_text)
    pulled = 0

    read = readers.rows

    def counting(path: Path, key: str, skip: int) -> Iterator[Row]:
        nonlocal pulled
        for row in read(path, key, skip):
            pulled += 1
            yield row

    monkeypatch.setattr(readers, "rows", counting)
    data = stream(source, tokenizer, packing=packing, repeat=True)
    order, pulled = data.starting_at(0), 0
    chunks = set()
    for position in range(20):
        next(order)
        start = data.state(position)
        chunks.add(start["chunk"])
        assert pulled == data.facts()[0]["rows"]  # none is read ahead
        assert pulled - start["found"].get("rows", 0) <= samples.CHUNK_ROWS
    assert len(chunks) > 5
    # a state leads to the row where a chunk starts, without the rows before it
    pulled = 0
    next(stream(source, tokenizer, packing=packing).starting_at(position, start))
    assert pulled <= 1 + samples.CHUNK_ROWS  # the first row tells the format


def test_states_are_remembered_only_so_far_back(
    folder: Callable[..., Source], tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "BEHIND", 12)
    data = stream(folder(as_text), tokenizer, repeat=True)
    order = data.starting_at(0)
    for position in range(1, 60):
        next(order)
        assert data.state(max(position - 12, 0))["sample"] <= max(position - 12, 0)
    assert len(data._starts) < 15
    with pytest.raises(ValueError, match="position 0 lies before"):
        data.state(0)


def test_an_iterator_that_is_given_up_does_not_disturb_the_next(
    folder: Callable[..., Source], tokenizer: PreTrainedTokenizerFast
) -> None:
    data = stream(folder(as_text), tokenizer)
    abandoned = data.starting_at(0)
    next(abandoned)
    order = data.starting_at(0)
    first = next(order)
    list(abandoned)
    assert list(islice(data.starting_at(0, data.state(0)), 1)) == [first]


@pytest.mark.parametrize("repeat", [False, True])
def test_data_without_a_sample_are_an_error_not_an_endless_search(
    folder: Callable[..., Source], tokenizer: PreTrainedTokenizerFast, repeat: bool
) -> None:
    with pytest.raises(RequestError, match="none of 21 rows"):
        next(stream(folder(as_chat), tokenizer, length=4, repeat=repeat).starting_at(0))
    with pytest.raises(RequestError, match=r"a window of 5000 tokens\n.*shards with \d+ tokens"):
        next(stream(folder(as_text), tokenizer, length=5000, repeat=repeat).starting_at(0))
    empty = folder(lambda _: {"text": ""})
    with pytest.raises(RequestError, match="none of 21 rows"):
        next(stream(empty, tokenizer, packing=True, repeat=repeat).starting_at(0))


def test_rows_that_are_dropped_truncated_or_refused(
    folder: Callable[..., Source], tokenizer: PreTrainedTokenizerFast
) -> None:
    source = folder(as_chat)
    for packing in (False, True):
        data = stream(source, tokenizer, length=24, packing=packing)
        assert sum(1 for _ in data.starting_at(0)) > 0
        _, facts = instructions.examples(source, tokenizer, 24, None, packing=packing)
        assert data.facts()[0]["truncated"] == facts["truncated"] > 0
        assert data.facts()[0]["dropped"] == facts["dropped"]
    with pytest.raises(RequestError, match=r"shards/\w.jsonl(.gz)?, row \d+: \d+ tokens"):
        list(stream(source, tokenizer, length=24, overlong="refuse").starting_at(0))


@pytest.mark.parametrize("network", [True, False])
def test_a_hub_data_set_is_streamed_and_found_again(
    folder: Callable[..., Source], tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch, network: bool
) -> None:
    monkeypatch.setattr(offline, "is_on", lambda: not network)
    local = folder(as_chat)
    files = [shard.path for shard in local.shards() if not shard.path.endswith("c.jsonl")]
    asked: list[Any] = []

    def load(path: str, *_: Any, streaming: bool, **options: Any) -> Any:
        asked.append((path, streaming, options["split"]))
        return load_dataset("json", data_files=files, split="train", streaming=streaming)

    monkeypatch.setattr(datasets, "load_dataset", load)
    for limit in (None, 14):
        hub = Source(path="owner/name", key="train.dataset", limit=limit)
        once = stream(hub, tokenizer)
        expected = list(stream(folder(as_chat, limit=limit), tokenizer).starting_at(0))
        assert list(once.starting_at(0)) == expected
        count = len(expected)
        repeated = stream(hub, tokenizer, repeat=True)
        order = repeated.starting_at(0)
        whole = [next(order) for _ in range(count + 9)]
        for position in (0, 6, 7, 8, count - 1, count, count + 8):
            state = json.loads(json.dumps(repeated.state(position)))
            again = stream(hub, tokenizer, repeat=True).starting_at(position, state)
            assert list(islice(again, count + 9 - position)) == whole[position:]
    instructions.check(hub, None, streaming=True)
    assert set(asked) == {("owner/name", network, "train")}  # never downloaded as a whole; else what is cached


def test_a_hub_that_cannot_be_reached_is_an_error(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(RequestError, match="could not be fetched from the hub"):
        stream(Source(path="nobody/nothing", key="train.dataset"), tokenizer)
