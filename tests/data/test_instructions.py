import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from lors_cli.data import instructions
from lors_cli.data.instructions import IGNORED, check, examples
from lors_cli.data.sources import Source
from lors_cli.errors import RequestError
from tests.conftest import CHAT_TEMPLATE

Jsonl = Callable[..., Path]
ALPACA = [
    {"instruction": "Add.", "input": "1 and 2", "output": "3"},
    {"instruction": "Say hello.", "input": "", "output": "Hello there."},
]


def learnt(example: dict[str, list[int]], tokenizer: PreTrainedTokenizerFast) -> str:
    for token, label in zip(example["input_ids"], example["labels"], strict=True):
        assert label in (IGNORED, token)
    return str(tokenizer.decode([label for label in example["labels"] if label != IGNORED]))


def read(rows: list[Any], jsonl: Jsonl, tokenizer: PreTrainedTokenizerFast, length: int = 500, **options: Any) -> Any:
    return examples(Source(path=str(jsonl(rows)), key="train.dataset"), tokenizer, length, options.get("kind"))


def test_alpaca_learns_the_answer_and_the_end(jsonl: Jsonl, tokenizer: PreTrainedTokenizerFast) -> None:
    found, facts = read(ALPACA, jsonl, tokenizer)
    assert [learnt(example, tokenizer) for example in found] == ["3<|end|>", "Hello there.<|end|>"]
    first = tokenizer.decode(found[0]["input_ids"])
    assert "### Instruction:\nAdd.\n\n### Input:\n1 and 2\n\n### Response:\n3" in first
    assert "### Input" not in tokenizer.decode(found[1]["input_ids"])
    assert facts["format"] == "alpaca"
    assert (facts["examples"], facts["dropped"]) == (2, 0)


def test_chat_learns_every_turn_of_the_assistant(jsonl: Jsonl, tokenizer: PreTrainedTokenizerFast) -> None:
    turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Yes?"), ("user", "Bye"), ("assistant", "Bye.")]
    rows = [{"messages": [{"role": role, "content": text} for role, text in turns]}]
    found, facts = read(rows, jsonl, tokenizer)
    assert learnt(found[0], tokenizer) == "Yes?<|end|>Bye.<|end|>"
    assert facts["format"] == "chat"
    shared = [{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes?"}]}]
    assert learnt(read(shared, jsonl, tokenizer)[0][0], tokenizer) == "Yes?<|end|>"


def test_text_is_cut_into_windows(jsonl: Jsonl, tokenizer: PreTrainedTokenizerFast) -> None:
    found, facts = read([{"text": "some text " * 30}], jsonl, tokenizer, 16)
    assert facts["format"] == "text"
    assert all(len(example["input_ids"]) == 16 and example["labels"] == example["input_ids"] for example in found)


def test_rows_whose_answer_is_cut_off_are_dropped(jsonl: Jsonl, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [*ALPACA, {"instruction": "long " * 200, "input": "", "output": "never seen"}]
    found, facts = read(rows, jsonl, tokenizer, 200)
    assert (len(found), facts["dropped"], facts["truncated"]) == (2, 1, 1)
    with pytest.raises(RequestError, match="answer begins within 10 tokens"):
        read(rows, jsonl, tokenizer, 10)


@pytest.mark.parametrize(
    ("row", "kind", "expected"),
    [
        ({"question": "a"}, None, "the fields \\['question'\\]"),
        ({"instruction": "a", "input": ""}, "alpaca", "'output'"),
        ({"instruction": "a", "output": 3}, None, "'output' with text"),
        ({"messages": [{"role": "user", "content": "a"}]}, None, "role assistant"),
        ({"messages": "a"}, None, "a list of"),
        ({"messages": [{"role": "user"}]}, None, "a list of"),
        ({"txt": "a"}, "text", "the field 'text'"),
    ],
)
def test_rows_without_the_needed_fields(jsonl: Jsonl, row: dict[str, Any], kind: str | None, expected: str) -> None:
    with pytest.raises(RequestError, match=expected):
        check(Source(path=str(jsonl([row])), key="train.dataset"), kind)


def test_a_bad_row_far_down_is_found(jsonl: Jsonl, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(RequestError, match="row 3"):
        read([*ALPACA, {"instruction": "x"}], jsonl, tokenizer)


def test_a_chat_that_the_template_refuses_names_its_row(jsonl: Jsonl, tokenizer: PreTrainedTokenizerFast) -> None:
    strict = copy.deepcopy(tokenizer)
    strict.chat_template = "{{ raise_exception('no system role') }}"
    rows = [{"messages": [{"role": "assistant", "content": "Yes?"}]}]
    with pytest.raises(RequestError, match="row 1: no system role"):
        read(rows, jsonl, strict)
    assert learnt(read(rows, jsonl, tokenizer)[0][0], tokenizer).endswith("Yes?<|end|>")


def test_turns_that_a_template_shortens_are_not_learnt_and_said(
    jsonl: Jsonl, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    warned: list[str] = []
    monkeypatch.setattr(instructions.log, "warning", lambda message, *args: warned.append(message % args))
    forgetful = copy.deepcopy(tokenizer)
    shortened = "{{ m['content'] if loop.last else m['content'][:2] }}"
    forgetful.chat_template = CHAT_TEMPLATE.replace("{{ m['content'] }}", shortened)
    turns = [("user", "Hi"), ("assistant", "First answer"), ("user", "Go"), ("assistant", "Second answer")]
    found, _ = read([{"messages": [{"role": r, "content": c} for r, c in turns]}], jsonl, forgetful)
    assert "First" not in learnt(found[0], forgetful)
    assert len(warned) == 1
    assert "1 of 2 answers are not learnt" in warned[0]
