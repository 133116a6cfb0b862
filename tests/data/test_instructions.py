import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from lors_cli.data.example import IGNORED
from lors_cli.data.instructions import Rules, check, examples
from lors_cli.data.sources import Source
from lors_cli.errors import RequestError
from tests.pico import CHAT_TEMPLATE

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
    kind = options.pop("kind", None)
    return examples(Source(path=str(jsonl(rows)), key="train.dataset"), tokenizer, length, kind, **options)


def test_alpaca_learns_the_answer_and_the_end(jsonl: Jsonl, tokenizer: PreTrainedTokenizerFast) -> None:
    encoded, facts = read(ALPACA, jsonl, tokenizer)
    assert [learnt(example, tokenizer) for example in encoded] == ["3<|end|>", "Hello there.<|end|>"]
    first = tokenizer.decode(encoded[0]["input_ids"])
    assert "### Instruction:\nAdd.\n\n### Input:\n1 and 2\n\n### Response:\n3" in first
    assert "### Input" not in tokenizer.decode(encoded[1]["input_ids"])
    assert facts["format"] == "alpaca"
    assert (facts["examples"], facts["dropped"]) == (2, 0)


def test_chat_learns_every_turn_of_the_assistant(jsonl: Jsonl, tokenizer: PreTrainedTokenizerFast) -> None:
    turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Yes?"), ("user", "Bye"), ("assistant", "Bye.")]
    rows = [{"messages": [{"role": role, "content": text} for role, text in turns]}]
    encoded, facts = read(rows, jsonl, tokenizer)
    assert learnt(encoded[0], tokenizer) == "Yes?<|end|>Bye.<|end|>"
    assert facts["format"] == "chat"
    shared = [{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes?"}]}]
    assert learnt(read(shared, jsonl, tokenizer)[0][0], tokenizer) == "Yes?<|end|>"


def test_text_is_cut_into_windows(jsonl: Jsonl, tokenizer: PreTrainedTokenizerFast) -> None:
    encoded, facts = read([{"text": "some text " * 30}], jsonl, tokenizer, 16)
    assert facts["format"] == "text"
    assert all(len(example["input_ids"]) == 16 and example["labels"] == example["input_ids"] for example in encoded)


def test_rows_whose_answer_is_cut_off_are_dropped(jsonl: Jsonl, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [*ALPACA, {"instruction": "long " * 200, "input": "", "output": "never seen"}]
    encoded, facts = read(rows, jsonl, tokenizer, 200)
    assert (len(encoded), facts["dropped"], facts["truncated"]) == (2, 1, 1)
    with pytest.raises(RequestError, match="answer begins within 10 tokens"):
        read(rows, jsonl, tokenizer, 10)


@pytest.mark.parametrize(
    ("row", "kind", "expected"),
    [
        ({"question": "a"}, None, "the fields \\['question'\\]"),
        ({"instruction": "a", "input": ""}, "alpaca", "'output'"),
        ({"instruction": "a", "output": 3}, None, "'output' with text"),
        ({"messages": [{"role": "user", "content": "a"}]}, None, "role assistant"),
        ({"messages": "a"}, None, "a list, or its JSON"),
        ({"messages": [{"role": "user"}]}, None, r"messages\[0\].content: neither"),
        ({"txt": "a"}, "text", "the field 'text'"),
    ],
)
def test_rows_without_the_needed_fields(jsonl: Jsonl, row: dict[str, Any], kind: str | None, expected: str) -> None:
    with pytest.raises(RequestError, match=expected):
        check(Source(path=str(jsonl([row])), key="train.dataset"), kind)


def test_the_field_that_holds_the_text_or_the_turns(jsonl: Jsonl, tokenizer: PreTrainedTokenizerFast) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
    path = str(jsonl([{"talk": turns, "title": "A talk", "output": "x"}]))
    source = Source(path=path, key="train.dataset", field="talk")
    with pytest.raises(RequestError, match="row 1, field output: 'x'"):
        check(source, None)
    check(source, None, ignore=("output",))
    encoded, _ = examples(source, tokenizer, 100, None, rules=Rules(ignore=("output",)))
    assert learnt(encoded[0], tokenizer) == "Yes?<|end|>"
    named = Source(path=str(jsonl(ALPACA)), key="train.dataset", field="output")
    with pytest.raises(RequestError, match=r"train.dataset.field\n.*no field with format: alpaca"):
        check(named, "alpaca")
    with pytest.raises(RequestError, match="fields instruction, input"):  # by `field` the rows are text
        check(named, None)


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


def test_an_answer_that_a_template_shortens_later_is_learnt_in_an_example_of_its_own(
    jsonl: Jsonl, tokenizer: PreTrainedTokenizerFast
) -> None:
    forgetful = copy.deepcopy(tokenizer)
    shortened = "{{ m['content'] if loop.last or m['role'] == 'user' else m['content'][:2] }}"
    forgetful.chat_template = CHAT_TEMPLATE.replace("{{ m['content'] }}", shortened)
    turns = [("user", "Hi"), ("assistant", "First answer"), ("user", "Go"), ("assistant", "Second answer")]
    encoded, facts = read([{"messages": [{"role": r, "content": c} for r, c in turns]}], jsonl, forgetful)
    assert [learnt(example, forgetful) for example in encoded] == ["First answer<|end|>", "Second answer<|end|>"]
    first = "<|user|>Hi<|end|><|assistant|>First answer<|end|>"
    second = "<|user|>Hi<|end|><|assistant|>Fi<|end|><|user|>Go<|end|><|assistant|>Second answer<|end|>"
    assert [forgetful.decode(example["input_ids"]) for example in encoded] == [first, second]
    assert (facts["examples"], facts["truncated"], facts["dropped"]) == (2, 0, 0)


def test_packing_joins_rows_and_counts_them(jsonl: Jsonl, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [*ALPACA * 4, {"instruction": "long " * 200, "input": "", "output": "never seen"}]
    alone, facts = read(rows, jsonl, tokenizer, 200)
    packed, packed_facts = read(rows, jsonl, tokenizer, 200, packing=True)
    sizes = [len(example["input_ids"]) for example in alone]
    assert sorted(size for example in packed for size in example["documents"]) == sorted(sizes)
    assert sorted(token for example in packed for token in example["labels"]) == sorted(
        token for example in alone for token in example["labels"]
    )  # an answer never begins a row, so no label is lost
    padding = round(1 - sum(sizes) / (200 * len(packed)), 4)
    assert packed_facts == {**facts, "examples": len(packed), "documents": 8, "padding": padding}
    assert len(packed) < 8
    assert (packed_facts["dropped"], packed_facts["tokens"]) == (1, sum(sizes))


def test_packed_text_has_a_document_a_row(jsonl: Jsonl, tokenizer: PreTrainedTokenizerFast) -> None:
    end, short = tokenizer.eos_token_id, "a short row"
    long = tokenizer("many words " * 20)["input_ids"]
    to_the_end = tokenizer.decode(long[:16])  # with the end token it has 17: the last one alone is nothing to learn
    assert tokenizer(to_the_end)["input_ids"] == long[:16]
    rows = [{"text": text} for text in (short, "", "many words " * 20, "ends itself<|end|>", to_the_end)]
    encoded, facts = read(rows, jsonl, tokenizer, 16, packing=True)
    pieces = [(*long, end)[start : start + 16] for start in range(0, len(long) + 1, 16)]
    expected = [(*tokenizer(short)["input_ids"], end), *pieces, tuple(tokenizer("ends itself<|end|>")["input_ids"])]
    documents = []
    for example in encoded:
        start = 0
        for size in example["documents"]:
            documents.append(tuple(example["input_ids"][start : start + size]))
            assert example["labels"][start : start + size] == [IGNORED, *documents[-1][1:]]
            start += size
    assert sorted(documents) == sorted([*expected, tuple(long[:16])])
    assert (facts["documents"], facts["dropped"], facts["truncated"]) == (len(documents), 1, 0)


def test_rows_that_are_too_long_can_be_refused(jsonl: Jsonl, tokenizer: PreTrainedTokenizerFast) -> None:
    long = [{**ALPACA[1], "output": "Hello. " * count} for count in (100, 200, 150)]
    rows = [ALPACA[0], long[0], ALPACA[1], *long[1:]]
    size = len(read([long[0]], jsonl, tokenizer, 5000)[0][0]["input_ids"])
    with pytest.raises(RequestError, match=rf"rows.jsonl, row 2: {size} tokens \(and 2 more rows\)") as error:
        read(rows, jsonl, tokenizer, 200, overlong="refuse")
    assert "rows of at most 200 tokens" in str(error.value)
    assert "train.overlong: truncate" in str(error.value)
    assert read(ALPACA, jsonl, tokenizer, 200, overlong="refuse") == read(ALPACA, jsonl, tokenizer, 200)


def test_a_bad_row_is_named_by_its_shard(tmp_path: Path, jsonl: Jsonl, tokenizer: PreTrainedTokenizerFast) -> None:
    jsonl(ALPACA, "a.jsonl")
    jsonl([*ALPACA, {"instruction": "x"}], "b.jsonl")
    source = Source(path=str(tmp_path / "?.jsonl"), key="train.dataset")
    check(source, None)
    with pytest.raises(RequestError, match=r"b\.jsonl, row 3"):
        examples(source, tokenizer, 200, None)
    assert len(examples(replace(source, limit=4), tokenizer, 200, None)[0]) == 4


# The prompts of Stanford Alpaca, written out: the count below must not come from the code that it checks.
GIVEN = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a"
    " response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n1 and 2\n\n###"
    " Response:\n3"
)
ALONE = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n###"
    " Instruction:\nSay hello.\n\n### Response:\nHello there."
)


@pytest.mark.parametrize("packing", [False, True])
def test_prompts_are_learnt_if_asked_for(jsonl: Jsonl, tokenizer: PreTrainedTokenizerFast, packing: bool) -> None:
    options: dict[str, Any] = {"rules": Rules(learn_prompt=True), "packing": packing}
    encoded, _ = read(ALPACA, jsonl, tokenizer, **options)
    # each text and its end token; the first token of a sample, and of a packed row, is predicted from nothing
    tokens = sum(len(tokenizer(text)["input_ids"]) + 1 - 1 for text in (GIVEN, ALONE))
    assert sum(label != IGNORED for example in encoded for label in example["labels"][1:]) == tokens
    plain, _ = read(ALPACA, jsonl, tokenizer, packing=packing)
    assert [one["input_ids"] for one in encoded] == [one["input_ids"] for one in plain]  # only the labels differ
    rows = [{"prompt": "One, two,", "completion": " three."}]
    (example,), _ = read(rows, jsonl, tokenizer, rules=Rules(learn_prompt=True))
    assert learnt(example, tokenizer) == "One, two, three.<|end|>"
    turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Yes?"), ("user", "Bye")]
    messages = [{"role": role, "content": text} for role, text in turns]
    (example,), _ = read([{"messages": messages}], jsonl, tokenizer, rules=Rules(learn_prompt=True))
    told = tokenizer.apply_chat_template(messages[:3], tokenize=False)
    assert learnt(example, tokenizer) == told[: told.rindex("<|end|>") + len("<|end|>")]


def test_a_row_that_is_cut_before_its_answer_still_has_a_prompt_to_learn(
    jsonl: Jsonl, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = [{"instruction": "long " * 200, "input": "", "output": "never seen"}]
    encoded, facts = read(rows, jsonl, tokenizer, 50, rules=Rules(learn_prompt=True))
    assert encoded[0]["labels"] == encoded[0]["input_ids"]
    assert (len(encoded[0]["labels"]), facts["dropped"], facts["truncated"]) == (50, 0, 1)


def test_prompts_that_cannot_be_learnt_are_refused(jsonl: Jsonl) -> None:
    source = Source(path=str(jsonl([{"text": "some text"}])), key="train.dataset")
    with pytest.raises(RequestError, match=r"(?s)learn_prompt.*every token is learnt"):
        check(source, None, learn_prompt=True)
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "No!", "weight": 0}]
    turns += [{"role": "assistant", "content": "Yes.", "weight": 1}]
    source = Source(path=str(jsonl([{"messages": turns}])), key="train.dataset")
    with pytest.raises(RequestError, match=r"set train.ignore_fields: \[weight\]"):
        check(source, None, learn_prompt=True)
    check(source, None, learn_prompt=True, ignore=("weight",))
    check(source, None)
