"""Rows and turns of the tests of what is learnt, and how these tests read them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from lors_cli.data.example import IGNORED, Ends
from lors_cli.data.instructions import Rules, examples
from lors_cli.data.sources import Source

Make = Callable[[str], PreTrainedTokenizerFast]
Row = dict[str, Any]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def u(content: Any, **more: Any) -> Row:
    return {"role": "user", "content": content, **more}


def a(content: Any, **more: Any) -> Row:
    return {"role": "assistant", "content": content, **more}


def s(content: Any, **more: Any) -> Row:
    return {"role": "system", "content": content, **more}


def t(content: Any, **more: Any) -> Row:
    return {"role": "tool", "content": content, **more}


def call(name: str, arguments: Any, **more: Any) -> Row:
    return {"type": "function", "function": {"name": name, "arguments": arguments}, **more}


def chat(*turns: Row, **columns: Any) -> Row:
    return {"messages": list(turns), **columns}


PARIS = call("get_weather", {"city": "Paris"})
ASKED = [u("Weather?"), a(None, tool_calls=[PARIS]), t("Sunny"), a("Nice.")]
NO_THOUGHT = "<think>\n\n</think>\n\n"  # with which Qwen3's template begins an answer without reasoning
CALLED = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call><|im_end|>'


def encode(
    row: Row, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, kind: str | None = None, **rules: Any
) -> tuple[list[dict[str, list[int]]], Row]:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    ends = Ends(rules.pop("append", "auto"), frozenset(tokenizer.convert_tokens_to_ids(rules.pop("stops", []))))
    source = Source(path=str(path), key="train.dataset")
    return examples(source, tokenizer, 2000, kind, rules=Rules(ends, **rules))


def learnt(example: dict[str, list[int]], tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Each run of learnt tokens as text."""
    runs: list[list[int]] = [[]]
    for token, label in zip(example["input_ids"], example["labels"], strict=True):
        assert label in (IGNORED, token)
        if label == IGNORED:
            runs.append([])
        else:
            runs[-1].append(token)
    return [tokenizer.decode(run) for run in runs if run]
