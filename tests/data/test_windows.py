from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from lors_cli.data.calibration import calibration_windows
from lors_cli.data.sources import Source
from lors_cli.data.windows import concatenated
from lors_cli.errors import RequestError

Jsonl = Callable[..., Path]
TEXTS = [f"Row {i} says: {'word ' * (i % 7)}{i * 37}." for i in range(200)]


@pytest.fixture
def rows(jsonl: Jsonl) -> Source:
    return Source(path=str(jsonl([{"text": text} for text in TEXTS])), key="k")


@pytest.mark.parametrize("count", [1, 5, 30, None])
def test_concat_cuts_the_joined_rows_from_the_start(
    rows: Source, tokenizer: PreTrainedTokenizerFast, count: int | None
) -> None:
    ids = tokenizer("\n\n".join(TEXTS), add_special_tokens=False)["input_ids"]
    whole = len(ids) // 16
    expected = torch.tensor(ids[: whole * 16]).view(whole, 16)[:count]
    assert torch.equal(concatenated(rows, tokenizer, 16, count), expected)


def test_too_short_a_text_is_an_error(rows: Source, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(RequestError, match="text for 5000 windows of 16 tokens"):
        concatenated(rows, tokenizer, 16, 5000)
    assert len(concatenated(rows, tokenizer, 16, 5000, at_most=True)) == len(concatenated(rows, tokenizer, 16, None))
    with pytest.raises(RequestError, match="text for 1 windows"):
        concatenated(rows, tokenizer, 10**6, None)


def random_windows(
    source: Source, tokenizer: PreTrainedTokenizerFast, length: int, count: int, seed: int
) -> torch.Tensor:
    return calibration_windows(source, None, tokenizer, length, count, sampling="random", seed=seed)


def test_random_windows_come_from_single_long_documents(jsonl: Jsonl, tokenizer: PreTrainedTokenizerFast) -> None:
    documents = ["short", "a b c d e f g h i j k l m n o p " * 4, "1 2 3 4 5 6 7 8 9 " * 6]
    source = Source(path=str(jsonl([{"text": text} for text in documents])), key="k")
    windows = random_windows(source, tokenizer, 20, 50, seed=1)
    assert windows.shape == (50, 20)
    texts = [tokenizer.decode(window) for window in windows]
    assert all(any(text in document for document in documents[1:]) for text in texts)
    assert len(set(texts)) > 10
    assert torch.equal(windows, random_windows(source, tokenizer, 20, 50, seed=1))
    assert not torch.equal(windows, random_windows(source, tokenizer, 20, 50, seed=2))


def test_the_search_for_long_documents_ends(rows: Source, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(RequestError, match="200 documents are all shorter"):
        random_windows(rows, tokenizer, 5000, 1, seed=0)
