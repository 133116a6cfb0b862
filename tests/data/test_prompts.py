"""Conversations as Alpaca's prompts, for tokenizers without a chat template."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from lors_cli.data.instructions import Rules, examples
from lors_cli.data.prompts import WITHOUT_INPUT
from lors_cli.data.sources import Source
from lors_cli.errors import RequestError
from tests.data.test_instructions import learnt

Jsonl = Callable[..., Path]
HERMES: dict[str, Any] = {
    "conversations": [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "Hi"},
        {"from": "gpt", "value": "Yes?"},
        {"from": "human", "value": "Add 1 and 2."},
        {"from": "gpt", "value": "3"},
    ],
    "source": "x",
    "skip_prompt_formatting": False,
}
ORCA: dict[str, Any] = {"id": "t0.1", "system_prompt": "", "question": "1+1?", "response": "2"}


@pytest.fixture
def base(tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> PreTrainedTokenizerFast:
    """A tokenizer of a base model."""
    monkeypatch.setattr(tokenizer, "chat_template", None)
    return tokenizer


def read(row: dict[str, Any], jsonl: Jsonl, tokenizer: PreTrainedTokenizerFast, kind: str, **rules: Any) -> Any:
    source = Source(path=str(jsonl([row])), key="train.dataset")
    return examples(source, tokenizer, 500, kind, rules=Rules(**rules))[0][0]


def test_a_conversation_is_a_history_of_instructions(jsonl: Jsonl, base: PreTrainedTokenizerFast) -> None:
    end = base.eos_token
    example = read(HERMES, jsonl, base, "alpaca")
    asked, last = "\n\n### Instruction:\nHi\n\n### Response:\n", "\n\n### Instruction:\nAdd 1 and 2.\n\n### Response:\n"
    assert base.decode(example["input_ids"]) == f"Be brief.{asked}Yes?{end}{last}3{end}"
    assert learnt(example, base) == f"Yes?{end}3{end}"
    # as the same turns in Alpaca's own fields
    own = {"system": "Be brief.", "history": [["Hi", "Yes?"]], "instruction": "Add 1 and 2.", "output": "3"}
    assert read(own, jsonl, base, "alpaca") == example


def test_a_question_without_a_system_prompt_has_alpacas_first_paragraph(
    jsonl: Jsonl, base: PreTrainedTokenizerFast
) -> None:
    example = read(ORCA, jsonl, base, "alpaca")
    same = {"instruction": ORCA["question"], "output": ORCA["response"]}
    assert base.decode(example["input_ids"]).startswith(WITHOUT_INPUT)
    assert example == read(same, jsonl, base, "alpaca")
    whole = read(ORCA, jsonl, base, "alpaca", learn_prompt=True)
    assert whole["labels"] == whole["input_ids"] == example["input_ids"]


def test_a_turn_with_weight_0_is_context(jsonl: Jsonl, base: PreTrainedTokenizerFast) -> None:
    turns = [dict(turn) for turn in HERMES["conversations"]]
    turns[2]["weight"] = 0
    assert learnt(read({"conversations": turns}, jsonl, base, "alpaca"), base) == f"3{base.eos_token}"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": [{"role": "assistant", "content": "Hi"}]}, "roles ['assistant']"),
        ({"conversations": HERMES["conversations"][:4]}, "roles ['user', 'assistant', 'user']"),
        ({"conversations": HERMES["conversations"], "tools": [{"name": "f"}]}, "tools"),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "thinking": "c"}]},
            "thinking",
        ),
        ({"input": "1", "output": "2"}, "the field 'instruction' with text"),
        ({**ORCA, "context": "a long text"}, "context"),
    ],
)
def test_what_alpacas_prompts_cannot_hold_is_refused(
    row: dict[str, Any], said: str, jsonl: Jsonl, base: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(RequestError) as error:
        read(row, jsonl, base, "alpaca")
    assert said in str(error.value)
    assert "row 1" in str(error.value)


@pytest.mark.parametrize("kind", ["openhermes", "chat"])
def test_the_remedy_for_a_missing_template_works(kind: str, jsonl: Jsonl, base: PreTrainedTokenizerFast) -> None:
    with pytest.raises(RequestError, match=r"set train.dataset.format: alpaca"):
        read(HERMES, jsonl, base, kind)
    assert read(HERMES, jsonl, base, "alpaca")
