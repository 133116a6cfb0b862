import random

import pytest

from lors_cli.data.example import IGNORED, Example
from lors_cli.data.packing import pack
from lors_cli.data.sources import Source
from tests.conftest import SHARED_DATA, needs_shared_data


def documents(lengths: list[int]) -> list[Example]:
    """Documents whose tokens tell which document and place they are."""
    return [
        {"input_ids": [1000 * number + place for place in range(length)], "labels": [number] * length}
        for number, length in enumerate(lengths)
    ]


def padding(lengths: list[int], length: int) -> float:
    windows = pack([{"input_ids": [0] * size, "labels": [0] * size} for size in lengths], length)
    return 1 - sum(lengths) / (len(windows) * length)


def test_every_document_is_whole_and_once_in_a_window() -> None:
    generator = random.Random(0)
    lengths = [generator.randint(1, 64) for _ in range(200)]
    given = documents(lengths)
    windows = pack(given, 64)
    unpacked = []
    for window in windows:
        assert len(window["input_ids"]) == len(window["labels"]) == sum(window["documents"]) <= 64
        ids, labels = iter(window["input_ids"]), iter(window["labels"])
        for size in window["documents"]:
            document = [next(ids) for _ in range(size)]
            unpacked.append(document)
            assert [next(labels) for _ in range(size)] == [IGNORED] + [document[0] // 1000] * (size - 1)
    assert sorted(unpacked) == [example["input_ids"] for example in given]
    assert windows == pack(given, 64)
    assert given == documents(lengths)  # the labels of what came in are as they were


def test_best_fit_decreasing_by_hand() -> None:
    # 6 opens a window, 5 another; 4 fits both and takes the fuller; 3 the other; 2 that again; 2 a third
    windows = pack(documents([2, 3, 5, 2, 6, 4]), 10)
    assert [window["documents"] for window in windows] == [[6, 4], [5, 3, 2], [2]]


def test_little_is_padding() -> None:
    generator = random.Random(0)
    assert padding([min(512, int(generator.lognormvariate(4.5, 0.7)) + 1) for _ in range(5000)], 512) <= 0.02
    # no pair fits: nothing can be done
    assert padding([300] * 10, 512) == pytest.approx(1 - 300 / 512)


@needs_shared_data
def test_alpaca_leaves_two_per_cent_of_padding() -> None:
    rows = Source(path=str(SHARED_DATA / "alpaca_train.jsonl.gz"), key="k", limit=8000).rows()
    # four characters a token, as large vocabularies have it, and the prompt; the tests' tokenizer knows few words
    lengths = [min(512, 40 + sum(map(len, row.values())) // 4) for row in rows]
    assert padding(lengths, 512) <= 0.02
