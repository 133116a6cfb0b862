from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from lors_cli.data import preview
from lors_cli.data.example import IGNORED
from lors_cli.data.instructions import Rules
from lors_cli.data.sources import Source

Jsonl = Callable[..., Path]


def lines(
    rows: list[Any], jsonl: Jsonl, tokenizer: PreTrainedTokenizerFast, length: int = 500, **options: Any
) -> list[str]:
    options = {"packing": False, "rules": Rules(), **options}
    source = Source(path=str(jsonl(rows)), key="train.dataset")
    found = preview.first_examples(source, tokenizer, length, None, **options)
    return [preview.line(example, tokenizer) for example in found]


def test_learnt_tokens_are_marked(jsonl: Jsonl, tokenizer: PreTrainedTokenizerFast) -> None:
    turns = [("user", "Hi\nyou"), ("assistant", "Yes?"), ("user", "Bye"), ("assistant", "Bye.")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    expected = "<|user|>Hi\\nyou<|end|><|assistant|>⟦Yes?<|end|>⟧<|user|>Bye<|end|><|assistant|>⟦Bye.<|end|>⟧"
    assert lines([row] * 5, jsonl, tokenizer) == [expected] * preview.ROWS


def test_long_parts_are_cut_in_the_middle(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer("one two three " * 40)["input_ids"]
    shown = preview.line({"input_ids": ids, "labels": [IGNORED] * 5 + ids[5:]}, tokenizer)
    start, rest = shown.split("⟦")
    head, tail = rest.split(f" … {len(ids) - 5 - 2 * preview.TOKENS} tokens … ")
    assert start == tokenizer.decode(ids[:5])
    assert head == tokenizer.decode(ids[5 : 5 + preview.TOKENS])
    assert tail == tokenizer.decode(ids[-preview.TOKENS :]) + "⟧"


def test_windows_of_text(jsonl: Jsonl, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [{"text": "some words"}, {"text": "and others " * 30}]
    shown = lines(rows, jsonl, tokenizer, 16)
    assert len(shown) == preview.ROWS
    assert all(line.startswith("⟦") and line.endswith("⟧") for line in shown)
    assert shown[0].startswith("⟦some words\\n\\nand others")
    assert lines(rows, jsonl, tokenizer, packing=True)[0] == "⟦some words<|end|>⟧"
