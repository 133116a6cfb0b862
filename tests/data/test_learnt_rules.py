"""How answers end, and what of rows and their columns is learnt or left out."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from lors_cli.data import formats
from lors_cli.data.instructions import Rules, examples
from lors_cli.data.sources import Source
from lors_cli.errors import RequestError
from tests.data.turns import (
    ASKED,
    CALLED,
    NO_THOUGHT,
    WEATHER,
    Make,
    Row,
    a,
    call,
    chat,
    encode,
    learnt,
    s,
    t,
    u,
)

ALPACA = "Below is an instruction that describes a task. Write a response that appropriately completes the request."


@pytest.mark.parametrize(
    ("family", "row", "text"),
    [
        (
            "none",
            {"instruction": "Go.", "output": "Gone."},
            f"{ALPACA}\n\n### Instruction:\nGo.\n\n### Response:\nGone.",
        ),
        (
            "none",
            {"instruction": "Go.", "input": "Up", "output": "Gone.", "system": "Be.", "history": [["Hi", "Yes?"]]},
            "Be.\n\n### Instruction:\nHi\n\n### Response:\nYes?</s>"
            "\n\n### Instruction:\nGo.\n\n### Input:\nUp\n\n### Response:\nGone.",
        ),
        ("none", {"prompt": "1+1=", "completion": "2"}, "1+1=2"),
        (
            "zephyr",
            {"question": "1+1?", "answer": "2", "system_prompt": "Be."},
            "<|system|>\nBe.</s>\n<|user|>\n1+1?</s>\n<|assistant|>\n2</s>\n",
        ),
        (
            "plain",
            {"prompt": [s("Be."), u("Hi")], "chosen": [a("Yes?")], "rejected": [a("No.")]},
            "system: Be.\nuser: Hi\nassistant: Yes?\n",
        ),
    ],
)
def test_the_whole_text_of_a_row(family: str, row: Row, text: str, make: Make, tmp_path: Path) -> None:
    tokenizer = make(family)
    encoded, _ = encode(row, tokenizer, tmp_path)
    ended = text if family == "zephyr" else text + "</s>"
    assert [tokenizer.decode(example["input_ids"]) for example in encoded] == [ended]


@pytest.mark.parametrize(
    ("family", "append", "stops", "expected", "counts"),
    [
        ("chatml", "auto", [], ["Yes?<|im_end|>"], (0, 0)),
        ("chatml", True, [], ["Yes?<|im_end|>"], (0, 0)),
        ("llama3", "auto", ["<|eot_id|>"], ["Yes?<|eot_id|>"], (0, 0)),
        ("llama3", True, ["<|eot_id|>"], ["Yes?<|eot_id|><|end_of_text|>"], (1, 0)),
        ("llama3", "auto", [], ["Yes?<|eot_id|><|end_of_text|>"], (1, 0)),  # no file says that <|eot_id|> is an end
        ("llama3", False, [], ["Yes?<|eot_id|>"], (0, 1)),
        ("plain", "auto", [], [" Yes?\n</s>"], (1, 0)),
        ("plain", True, [], [" Yes?\n</s>"], (1, 0)),
        ("plain", False, [], [" Yes?\n"], (0, 1)),
    ],
)
def test_how_an_answer_ends(
    family: str, append: Any, stops: list[str], expected: list[str], counts: tuple[int, int], make: Make, tmp_path: Path
) -> None:
    tokenizer = make(family)
    for turns in ([u("Hi"), a("Yes?")], [u("Hi"), a("Yes?"), u("Bye")]):
        (example,), facts = encode(chat(*turns), tokenizer, tmp_path, append=append, stops=stops)
        assert learnt(example, tokenizer) == expected
        assert (facts["eos_appended"], facts["eos_missing"]) == counts


def test_the_header_of_the_next_turn_can_end_an_answer(make: Make, tmp_path: Path) -> None:
    tokenizer = copy.deepcopy(make("r1"))
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|User|>' if m.role == 'user' else '<|Assistant|>' }}{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|Assistant|>{% endif %}"
    )
    (example,), _ = encode(chat(u("Hi"), a("Yes?"), u("Go"), a("No.")), tokenizer, tmp_path, stops=["<|User|>"])
    assert learnt(example, tokenizer) == ["Yes?<|User|>", "No.</s>"]


def test_fields_that_are_left_out_on_purpose(make: Make, tmp_path: Path) -> None:
    row = chat(u("Hi", name="Ann"), a("Yes?", reasoning_content="So."), lore="Once upon a time.", id=3, source="web")
    ignored = ("name", "reasoning_content", "lore")
    (example,), facts = encode(row, make("chatml"), tmp_path, ignore=ignored)
    assert learnt(example, make("chatml")) == ["Yes?<|im_end|>"]
    assert facts["unused"] == ["id", "source"]
    for name in ignored:
        fewer = tuple(other for other in ignored if other != name)
        with pytest.raises(RequestError, match=rf"train.ignore_fields: \[{name}\]"):
            encode(row, make("chatml"), tmp_path, ignore=fewer)


@pytest.mark.parametrize(
    "columns",
    [
        {"id": 1, "prompt_id": "x y", "source": "a b", "category": "open qa", "score_chosen": 3.5, "num_turns": 2},
        {"prompt": "Hi", "metadata": {"a": [1]}, "tags": ["a b"], "lang": "en", "is_ok": True, "answer_type": "a b"},
        {"images": [], "tools": None, "history": [], "system": "", "weight": 1, "train": True, "page": "p12"},
        {"label": {"ability": ["open talk"]}, "langdetect": "en"},
        {"original_question": "Hi there?", "correct": [True, False], "scores": [0.5, 1], "text": "user: Hi bot: Yes?"},
        {"created_at": "Mon 3", "conversation_hash": "x", "image_id": "x", "model": "a b", "messages_count": 2},
    ],
)
def test_columns_that_lose_nothing(columns: Row, make: Make, tmp_path: Path) -> None:
    (example,), facts = encode(chat(u("Hi"), a("Yes?"), **columns), make("chatml"), tmp_path)
    assert learnt(example, make("chatml")) == ["Yes?<|im_end|>"]
    empty = {"images", "tools", "history", "system"}
    assert facts["unused"] == sorted(columns.keys() - empty)


def test_a_prompt_that_has_the_whole_row_is_not_lost(make: Make, tmp_path: Path) -> None:
    row = {"instruction": "Go.", "input": "Up", "output": "Gone.", "prompt": "### Do:\nGo. Up\n### Done:\nGone."}
    (example,), facts = encode(row, make("none"), tmp_path)
    assert learnt(example, make("none")) == ["Gone.</s>"]
    assert facts["unused"] == ["prompt"]


def test_a_system_turn_that_is_moved_as_the_message_says(make: Make, tmp_path: Path) -> None:
    gemma = make("gemma")
    with pytest.raises(RequestError, match="put the text of the system turn before that of the user's turn"):
        encode(chat(s("Be brief."), u("Hi"), a("Yes?")), gemma, tmp_path)
    (example,), _ = encode(chat(u("Be brief.\n\nHi"), a("Yes?")), gemma, tmp_path, stops=["<end_of_turn>"])
    assert learnt(example, gemma) == ["Yes?<end_of_turn>"]


ORCA = {"id": "x", "system_prompt": "Be brief.", "question": "Hi", "response": "Yes?"}
HERMES = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes?"}], "source": "x"}


def test_a_system_prompt_where_the_template_has_none_can_be_left_out(make: Make, tmp_path: Path) -> None:
    gemma = make("gemma")
    with pytest.raises(
        RequestError, match=r"row 1: System role not supported(?s:.*)train\.ignore_fields: \[system_prompt\]"
    ):
        encode(ORCA, gemma, tmp_path)
    (example,), _ = encode(ORCA, gemma, tmp_path, ignore=("system_prompt",))
    assert "Be brief." not in gemma.decode(example["input_ids"])
    (example,), _ = encode({**ORCA, "system_prompt": ""}, gemma, tmp_path)
    assert learnt(example, gemma)[0].startswith("Yes?")
    turns = [{"from": "system", "value": "Be."}, *HERMES["conversations"]]
    with pytest.raises(RequestError, match="put the text of the system turn") as raised:
        encode({"conversations": turns}, gemma, tmp_path)
    assert "ignore_fields" not in str(raised.value)  # which would not leave the turn out


@pytest.mark.parametrize(
    ("kind", "row", "missing"),
    [
        ("openorca", ORCA, "system_prompt"),
        ("openorca", ORCA, "question"),
        ("openorca", ORCA, "response"),
        ("openhermes", HERMES, "conversations"),
    ],
)
def test_no_row_of_a_named_data_set_may_lack_a_field(
    make: Make, tmp_path: Path, kind: str, row: Row, missing: str
) -> None:
    chatml = make("chatml")
    path = tmp_path / "named.jsonl"
    path.write_text(json.dumps(row) + "\n")
    source = Source(path=str(path), key="train.dataset")
    (example,), _ = examples(source, chatml, 512, kind)
    assert example == examples(source, chatml, 512, None)[0][0]
    path.write_text(json.dumps(row) + "\n" + json.dumps({k: v for k, v in row.items() if k != missing}) + "\n")
    with pytest.raises(RequestError, match=f"row 2, field {missing}: fields") as raised:
        examples(source, chatml, 512, kind)
    if missing == "system_prompt":
        assert "or set format: chat" in str(raised.value)
        assert len(examples(source, chatml, 512, "chat")[0]) == 2


def test_nulls_of_parquet_are_absent(make: Make, tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    other = call("add", {"x": 1, "y": 2})
    rows = [chat(*ASKED, tools=[WEATHER]), chat(u("1+2?"), a("", tool_calls=[other]), t("3"), a("3."), tools=[])]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    source = Source(path=str(tmp_path / "rows.parquet"), key="train.dataset")
    tokenizer = make("qwen3")
    encoded, _ = examples(source, tokenizer, 2000, None)
    first = [text for example in encoded for text in learnt(example, tokenizer)]
    assert first[0] == NO_THOUGHT + CALLED
    assert '{"name": "add", "arguments": {"x": 1, "y": 2}}' in first[2]
    assert "null" not in "".join(tokenizer.decode(example["input_ids"]) for example in encoded)


def test_a_template_that_is_changed_as_the_message_says(make: Make, tmp_path: Path) -> None:
    tokenizer = copy.deepcopy(make("r1"))
    with pytest.raises(RequestError, match=r"let add_generation_prompt in the chat template render no more"):
        encode(chat(u("1+1"), a("2")), tokenizer, tmp_path)
    tokenizer.chat_template = tokenizer.chat_template.replace("<|Assistant|><think>\n{%", "<|Assistant|>{%")
    (example,), _ = encode(chat(u("1+1"), a("2")), tokenizer, tmp_path)
    assert learnt(example, tokenizer) == ["2</s>"]


def test_a_format_that_is_not_known_names_the_text(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"page": "word " * 50, "title": "A page"}) + "\n")
    source = Source(path=str(path), key="train.dataset")
    with pytest.raises(RequestError, match=r"format: text, field: page}$"):
        examples(source, make("none"), 16, None)
    encoded, facts = examples(Source(path=str(path), key="train.dataset", field="page"), make("none"), 16, "text")
    assert facts["unused"] == ["title"]
    path.write_text(json.dumps({"source": "web", "left": "word " * 50, "right": "other " * 50}) + "\n")
    with pytest.raises(RequestError, match=r"field: NAME}, and train.ignore_fields to the others"):
        examples(source, make("none"), 16, None)
    chosen = Source(path=str(path), key="train.dataset", field="right")
    encoded, _ = examples(chosen, make("none"), 16, "text", rules=Rules(ignore=("left",)))
    assert make("none").decode(encoded[0]["input_ids"]).startswith("other other")


def test_a_row_that_is_one_list_says_what_to_do(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"version": 1, "data": [{"instruction": "Go.", "output": "Gone."}]}) + "\n")
    for of_kind in (formats.of_training, lambda row, source: formats.of_calibration(row, source, None)):
        source = Source(path=str(path), key="train.dataset")
        with pytest.raises(RequestError, match=r"jq -c '\.\[\"data\"\]\[\]' FILE"):
            of_kind(next(source.rows()), source)
    path.write_text(json.dumps({"id": 1, "data": ["Hi", "Yes?"]}) + "\n")
    with pytest.raises(RequestError, match=r"format: chat, field: data}"):
        examples(Source(path=str(path), key="train.dataset"), make("chatml"), 99, None)
    (example,), _ = examples(Source(path=str(path), key="train.dataset", field="data"), make("chatml"), 99, "chat")
    assert learnt(example, make("chatml")) == ["Yes?<|im_end|>"]


def test_a_row_without_an_answer_to_learn_has_no_end_that_is_missing(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [chat(u("Hi"), a("No!", weight=0)), chat(u("Hi"), a("Yes?", weight=1))]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, facts = examples(Source(path=str(path), key="train.dataset"), make("chatml"), 99, None)
    assert (facts["dropped"], facts["eos_missing"]) == (1, 0)


def test_a_prompt_is_learnt_once_where_earlier_answers_have_examples_of_their_own(make: Make, tmp_path: Path) -> None:
    tokenizer = make("qwen3")
    row = chat(u("1+1"), a("2", reasoning_content="One and one."), u("And 2?"), a("4", reasoning_content="Two more."))
    plain, _ = encode(row, tokenizer, tmp_path)
    asked, _ = encode(row, tokenizer, tmp_path, learn_prompt=True)
    assert len(plain) == len(asked) == 2
    assert asked[0] == plain[0]
    whole = tokenizer.decode(plain[1]["input_ids"])
    end = whole.rindex("<|im_end|>") + len("<|im_end|>")
    assert learnt(asked[1], tokenizer) == [whole[:end]]
