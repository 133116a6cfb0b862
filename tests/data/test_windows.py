from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

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
