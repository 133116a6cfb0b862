"""What is learnt of rows of all formats, beside what a person would say is learnt."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from lors_cli.data import formats
from lors_cli.data.example import IGNORED, Ends
from lors_cli.data.instructions import Rules, examples
from lors_cli.data.sources import Source
from lors_cli.errors import RequestError
from tests.data import templates

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


@pytest.fixture(scope="module")
def make(tokenizer: PreTrainedTokenizerFast) -> Make:
    made = {family: templates.make(tokenizer, family) for family in templates.FAMILIES}
    return made.__getitem__


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


# family, row, the learnt texts of each example
READ: dict[str, tuple[str, Row, list[list[str]]]] = {
    "chatml": ("chatml", chat(u("Hi"), a("Yes?"), u("Bye"), a("Bye.")), [["Yes?<|im_end|>", "Bye.<|im_end|>"]]),
    "llama 3": ("llama3", chat(s("Be brief."), u("Hi"), a(" Yes? ")), [["Yes?<|eot_id|>"]]),
    "gemma": ("gemma", chat(u("Hi"), a("Yes?")), [["Yes?<end_of_turn>"]]),
    "mistral": ("mistral", chat(u("Hi"), a("Yes?"), u("Go"), a("Gone.")), [["Yes?</s>", "Gone.</s>"]]),
    "zephyr": ("zephyr", chat(s("Be brief."), u("Hi"), a("Yes?")), [["Yes?</s>"]]),
    "no end token": ("plain", chat(u("Hi"), a("Yes?"), u("Go"), a("Gone.")), [[" Yes?\n", " Gone.\n</s>"]]),
    "no end token, the user last": ("plain", chat(u("Hi"), a("Yes?"), u("Go")), [[" Yes?\n</s>"]]),
    "the assistant first": ("chatml", chat(a("Hello."), u("Hi"), a("Yes?")), [["Hello.<|im_end|>", "Yes?<|im_end|>"]]),
    "the assistant first, a beginning": ("llama3", chat(a("Hello."), u("Hi")), [["Hello.<|eot_id|>"]]),
    "the assistant first, no default": ("zephyr", chat(s("Be brief."), a("Hello.")), [["Hello.</s>"]]),
    "only the assistant": ("chatml", chat(a("Hello.")), [["Hello.<|im_end|>"]]),
    "two answers in a row": ("chatml", chat(u("Hi"), a("Yes?"), a("Hm.")), [["Yes?<|im_end|>", "Hm.<|im_end|>"]]),
    "two system turns": ("chatml", chat(s("One."), s("Two."), u("Hi"), a("Yes?")), [["Yes?<|im_end|>"]]),
    "the user last": ("chatml", chat(u("Hi"), a("Yes?"), u("Bye")), [["Yes?<|im_end|>"]]),
    "an empty answer": ("chatml", chat(u("Hi"), a("")), [["<|im_end|>"]]),
    "weight 0": ("chatml", chat(u("Hi"), a("No!", weight=0), u("Go"), a("Yes.", weight=1)), [["Yes.<|im_end|>"]]),
    "train false": ("chatml", chat(u("Hi", train=False), a("No!", train=False), a("Yes.")), [["Yes.<|im_end|>"]]),
    "masked": ("chatml", chat(u("Hi"), a("No!", masked=True), a("Yes.", masked=False)), [["Yes.<|im_end|>"]]),
    "nulls everywhere": (
        "chatml",
        chat(u("Hi", tool_calls=None, weight=None), a("Yes?", tool_calls=[], name=None, x=None), tools=None, images=[]),
        [["Yes?<|im_end|>"]],
    ),
    "parts of text": (
        "chatml",
        chat(u([{"type": "text", "text": "Hi"}]), a([{"type": "text", "text": "Ye"}, {"type": "text", "text": "s?"}])),
        [["Yes?<|im_end|>"]],
    ),
    "a call": ("qwen3", chat(*ASKED, tools=[WEATHER]), [[NO_THOUGHT + CALLED], [NO_THOUGHT + "Nice.<|im_end|>"]]),
    "arguments as JSON": (
        "qwen3",
        chat(*ASKED[:1], a("", tool_calls=[call("get_weather", '{"city": "Paris"}', id="c1")])),
        [[NO_THOUGHT + CALLED]],
    ),
    "tools as JSON": (
        "mistral",
        chat(*ASKED, tools=json.dumps([WEATHER["function"]])),
        [['[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Paris"}}]</s>', "Nice.</s>"]],
    ),
    "the old function_call": (
        "qwen3",
        chat(u("Weather?"), a(None, function_call={"name": "get_weather", "arguments": '{"city": "Paris"}'})),
        [[NO_THOUGHT + CALLED]],
    ),
    "ShareGPT": (
        "chatml",
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes?"}], "system": "Be brief."},
        [["Yes?<|im_end|>"]],
    ),
    "ShareGPT with calls": (
        "qwen3",
        {
            "conversations": [
                {"from": "human", "value": "Weather?"},
                {"from": "function_call", "value": '{"name": "get_weather", "arguments": {"city": "Paris"}}'},
                {"from": "observation", "value": "Sunny"},
                {"from": "gpt", "value": "Nice."},
            ],
            "tools": json.dumps([WEATHER]),
        },
        [[NO_THOUGHT + CALLED], [NO_THOUGHT + "Nice.<|im_end|>"]],
    ),
    "ShareGPT as JSON with capitals": (
        "qwen3",
        {
            "conversations": json.dumps(
                [
                    {"from": "Human", "value": "Weather?"},
                    {"from": "Function_Call", "value": '{"name": "get_weather", "arguments": {"city": "Paris"}}'},
                ]
            )
        },
        [[NO_THOUGHT + CALLED]],
    ),
    "ShareGPT as columns": (
        "chatml",
        {"conversations": {"from": ["human", "gpt"], "value": ["Hi", "Yes?"]}},
        [["Yes?<|im_end|>"]],
    ),
    "texts in turn": ("chatml", {"conversations": ["Hi", "Yes?", "Bye"], "source": "lima"}, [["Yes?<|im_end|>"]]),
    "pairs": (
        "chatml",
        {"conversation": [{"input": "Hi", "output": "Yes?"}, {"input": "Bye", "output": "Bye."}]},
        [["Yes?<|im_end|>", "Bye.<|im_end|>"]],
    ),
    "tools that the system turn has": (
        "chatml",
        chat(s(f"Tools: <tools>{[WEATHER]}</tools>"), u("Hi"), a("Yes?"), tools=json.dumps([WEATHER])),
        [["Yes?<|im_end|>"]],
    ),
    "an option of the template": (
        "qwen3",
        chat(u("Hi"), a("Yes?"), chat_template_kwargs={"enable_thinking": False, "custom": "", "others": []}),
        [["Yes?<|im_end|>"]],
    ),
    "reasoning": (
        "qwen3",
        chat(u("1+1"), a("2", reasoning_content="One more."), u("2+2"), a("4", reasoning_content="Twice two.")),
        [["<think>\nOne more.\n</think>\n\n2<|im_end|>"], ["<think>\nTwice two.\n</think>\n\n4<|im_end|>"]],
    ),
    "reasoning in the answer": (
        "qwen3",
        chat(u("1+1"), a("<think>One more.</think>2")),
        [["<think>\nOne more.\n</think>\n\n2<|im_end|>"]],
    ),
    "question and answer": ("chatml", {"question": "1+1?", "answer": "2", "id": 7}, [["2<|im_end|>"]]),
    "OpenHermes": (
        "chatml",
        {
            **dict.fromkeys(("topic", "model_name", "model", "views", "language", "id", "title", "idx", "hash"), None),
            "custom_instruction": False,
            "skip_prompt_formatting": True,
            "category": "orca",
            "avatarUrl": None,
            "system_prompt": None,
            "source": "airoboros2.2",
            "conversations": [
                {"from": "system", "value": "Be.", "weight": None},
                {"from": "human", "value": "Q?", "weight": None},
                {"from": "gpt", "value": "R", "weight": None},
            ],
        },
        [["R<|im_end|>"]],
    ),
    "OpenOrca": ("chatml", {"id": "x", "system_prompt": "Be.", "question": "Q?", "response": "R"}, [["R<|im_end|>"]]),
    "input and output": ("chatml", {"input": "Hi", "output": "Yes?"}, [["Yes?<|im_end|>"]]),
    "inputs and targets": ("chatml", {"inputs": "Hi", "targets": "Yes?", "language": "en"}, [["Yes?<|im_end|>"]]),
    "prompt and response": ("chatml", {"prompt": "Hi", "response": "Yes?"}, [["Yes?<|im_end|>"]]),
    "prompt and completion": ("none", {"prompt": "1+1=", "completion": "2"}, [["2</s>"]]),
    "turns of prompt and completion": (
        "chatml",
        {"prompt": [u("Hi"), a("Old."), u("Go")], "completion": [a("New.")]},
        [["New.<|im_end|>"]],
    ),
    "a desirable answer": ("none", {"prompt": "1+1=", "completion": "2", "label": True}, [["2</s>"]]),
    "preference, texts": ("none", {"prompt": "1+1=", "chosen": "2", "rejected": "3"}, [["2</s>"]]),
    "preference, turns": (
        "chatml",
        {"prompt": "Hi", "chosen": [u("Hi"), a("Yes?")], "rejected": [u("Hi"), a("No.")], "score_chosen": 8.5},
        [["Yes?<|im_end|>"]],
    ),
    "preference, repeated turns": (
        "chatml",
        {"prompt": [u("Hi"), a("Old."), u("Go")], "chosen": [u("Hi"), a("Old."), u("Go"), a("New.")], "rejected": []},
        [["New.<|im_end|>"]],
    ),
    "preference, only turns": (
        "chatml",
        {"chosen": [u("Hi"), a("Yes?")], "rejected": [u("Hi"), a("No.")]},
        [["Yes?<|im_end|>"]],
    ),
    "Alpaca": ("none", {"instruction": "Add.", "input": "1, 2", "output": "3", "text": "Add. 1, 2 3"}, [["3</s>"]]),
    "Alpaca with system": ("none", {"instruction": "Add 1, 2.", "output": "3", "system": "Be brief."}, [["3</s>"]]),
    "Alpaca with history": (
        "none",
        {"instruction": "Go.", "input": "", "output": "Gone.", "history": [["Hi", "Yes?"]]},
        [["Yes?</s>", "Gone.</s>"]],
    ),
    "Dolly": ("none", {"instruction": "Add.", "context": "1, 2", "response": "3", "category": "qa"}, [["3</s>"]]),
    "an answer that begins with a line": ("none", {"instruction": "Go.", "output": "\n\nGone."}, [["\n\nGone.</s>"]]),
}


@pytest.mark.parametrize("name", READ)
def test_what_a_person_would_learn(name: str, make: Make, tmp_path: Path) -> None:
    family, row, expected = READ[name]
    tokenizer = make(family)
    stops = ["<|eot_id|>"] if family == "llama3" else ["<end_of_turn>"] if family == "gemma" else []
    encoded, _ = encode(row, tokenizer, tmp_path, stops=stops)
    assert [learnt(example, tokenizer) for example in encoded] == expected


# family, row, and what the message says
REFUSED: dict[str, tuple[str, Row, list[str]]] = {
    "tools that are left out": ("chatml", chat(u("Hi"), a("Yes?"), tools=[WEATHER]), ["tools", "get_weather"]),
    "calls that are left out": ("chatml", chat(*ASKED), ["tool_calls of turn 2 (role assistant)"]),
    "results that are left out": ("zephyr", chat(u("Hi"), a("Wait."), t("Sunny"), a("So.")), ["turn 3 (role tool)"]),
    "a role that is left out": ("zephyr", chat({"role": "developer", "content": "Be."}, u("Hi"), a("So.")), ["turn 1"]),
    "reasoning that is left out": ("chatml", chat(u("1+1"), a("2", reasoning_content="So.")), ["reasoning_content"]),
    "thinking that is left out": ("llama3", chat(u("1+1"), a("2", thinking="So.")), ["thinking", "ignore_fields"]),
    "reasoning in the answer": ("r1", chat(u("1+1"), a("<think>So.</think>2")), ["content of turn 2", "<think>So."]),
    "a name that is left out": ("chatml", chat(u("I am Bob", name="Bob"), a("Yes?")), ["name of turn 1"]),
    "an opened thought": ("r1", chat(u("1+1"), a("2")), ["its own prompt", "<think>\\n", "rendered as '2</s>'"]),
    "a system turn": ("gemma", chat(s("Be."), u("Hi"), a("Yes?")), ["System role not supported"]),
    "two answers in a row": ("gemma", chat(u("Hi"), a("Yes?"), a("Hm.")), ["must alternate"]),
    "the assistant first": ("gemma", chat(a("Yes?"), u("Hi")), ["must alternate"]),
    "no place for a first answer": ("mistral", chat(a("Yes?"), u("Hi"), a("Hm.")), ["the user speaks first"]),
    "an unknown role": (
        "chatml",
        chat({"role": "critic", "content": "Hm"}, a("Yes?")),
        ["messages[0].role", "'critic'"],
    ),
    "an unknown key": ("chatml", chat(u("Hi"), a("Yes?", audio={"id": "x"})), ["messages[1].audio"]),
    "a weight": ("chatml", chat(u("Hi"), a("Yes?", weight=0.5)), ["messages[1].weight", "0.5"]),
    "a user to be learnt": ("chatml", chat(u("Hi", train=True), a("Yes?")), ["messages[0].train", "role user"]),
    "a part": ("chatml", chat(u([{"type": "image", "url": "x.png"}]), a("Yes?")), ["messages[0].content[0]", "image"]),
    "a part of audio": ("chatml", chat(u([{"type": "text", "text": "Hi", "audio": "x"}]), a("Yes?")), ["audio"]),
    "images": ("chatml", chat(u("Hi"), a("Yes?"), images=["x.png"]), ["field images", "x.png"]),
    "a path": ("chatml", {"question": "Hi", "answer": "Yes?", "page": "scan.png"}, ["field page"]),
    "nothing said": ("chatml", chat(u("Hi"), a(None)), ["messages[1].content", "neither"]),
    "no assistant": ("chatml", chat(s("Be."), u("Hi")), ["role assistant", "roles ['system', 'user']"]),
    "a call that is no JSON": (
        "qwen3",
        {"conversations": [u("Hi"), {"from": "function_call", "value": "f()"}]},
        ["f()"],
    ),
    "arguments that are no JSON": ("qwen3", chat(u("Hi"), a("", tool_calls=[call("f", "{x")])), ["arguments", "{x"]),
    "a list of texts and turns": ("chatml", {"conversations": ["Hi", a("Yes?")]}, ["conversations"]),
    "a text alone": ("chatml", {"conversations": ["Hi"]}, ["role assistant", "roles ['user']"]),
    "two lists": ("chatml", {**chat(u("Hi"), a("Yes?")), "conversations": [u("Hi"), a("No.")]}, ["both, which differ"]),
    "two system prompts": ("chatml", chat(s("One."), u("Hi"), a("Yes?"), system="Two."), ["one system prompt"]),
    "a context": (
        "chatml",
        {"question": "Who?", "context": "Ann.", "answer": "Ann"},
        ["field context", "ignore_fields"],
    ),
    "documents": (
        "chatml",
        {"question": "Who?", "answer": "Ann", "documents": [{"text": "Ann."}]},
        ["documents", "Ann."],
    ),
    "arguments that are left out": (
        "names",
        chat(u("Weather in Paris?"), a("", tool_calls=[PARIS])),
        ["tool_calls of turn 2", "'Paris'"],
    ),
    "an argument's name that is left out": (
        "values",
        chat(u("Weather?"), a("", tool_calls=[PARIS])),
        ["tool_calls of turn 2", "'city'"],
    ),
    "a parameter's name that is left out": (
        "descriptions",
        chat(u("Hi"), a("Yes?"), tools=[{"name": "f", "description": "Do.", "parameters": {"properties": {"x": {}}}}]),
        ["tools", "'x'"],
    ),
    "an option that does nothing": (
        "chatml",
        chat(u("Hi"), a("Yes?"), chat_template_kwargs={"enable_thinking": False}),
        ["field enable_thinking", "ignore_fields: [enable_thinking]"],
    ),
    "an option that is none": (
        "qwen3",
        chat(u("Hi"), a("Yes?"), chat_template_kwargs={"chat_template": "{{ messages }}"}),
        ["chat_template_kwargs.chat_template", "variables of the chat template"],
    ),
    "tools among the options": (
        "qwen3",
        chat(u("Hi"), a("Yes?"), chat_template_kwargs={"tools": [WEATHER]}),
        ["chat_template_kwargs.tools", "tools beside the turns"],
    ),
    "an original image": (
        "none",
        {"instruction": "Go.", "output": "Gone.", "original_image": [1, 2]},
        ["original_image"],
    ),
    "an original text": (
        "none",
        {"instruction": "Go.", "output": "Gone.", "original_text": "It is far."},
        ["original_t"],
    ),
    "a mask": ("none", {"instruction": "Go.", "output": "Gone.", "loss_mask": [0, 1]}, ["field loss_mask"]),
    "a prompt of its own": (
        "none",
        {"instruction": "Go.", "output": "Gone.", "prompt": "### Human: Go. ### Bot:"},
        ["field prompt"],
    ),
    "numbers that are left out": (
        "names",
        chat(u("5?"), a("", tool_calls=[call("f", {"days": 5})])),
        ["tool_calls", "5"],
    ),
    "a second call": ("first", chat(u("Go"), a("", tool_calls=[PARIS, PARIS])), ["tool_calls of turn 2"]),
    "words beside a call": ("first", chat(u("Go"), a("So.", tool_calls=[PARIS])), ["content of turn 2", "So."]),
    "the end of a long turn": ("short", chat(u("one " * 30), a("Yes?")), ["content of turn 1"]),
    "an earlier turn": (
        "window",
        chat(u("First."), a("Yes."), u("Second."), a("No.")),
        ["its own prompt"],
    ),
    "a second input": ("chatml", {"prompt": "Sum", "input": "1 2", "output": "3"}, ["field input"]),
    "rejected alone": ("chatml", chat(u("Hi"), a("Yes?"), rejected="No."), ["field rejected"]),
    "an undesirable answer": ("none", {"prompt": "1+1=", "completion": "3", "label": False}, ["field label"]),
    "several unknown texts": (
        "none",
        {"instruction": "Go.", "output": "Gone.", "lore": "Once upon a time.", "id": 1, "persona": "pirate"},
        ["fields lore, persona", "ignore_fields: [lore, persona]"],
    ),
    "a weighted row": ("none", {"instruction": "Go.", "output": "Gone.", "weight": 0.3}, ["field weight"]),
    "a history of another form": ("none", {"instruction": "Go.", "output": "Gone.", "history": "Hi"}, ["history"]),
    "images of Alpaca": ("none", {"instruction": "Go.", "output": "Gone.", "image": "a.jpg"}, ["field image"]),
    "an unknown text": ("none", {"instruction": "Go.", "output": "Gone.", "lore": "Once upon a time."}, ["field lore"]),
    "images of text": ("none", {"text": "Look.", "images": ["x.png"]}, ["field images"]),
    "answers in a list": ("chatml", {"question": "Q?", "answer": ["A", "B"]}, ["field answer", "['A', 'B']"]),
    "a turn that calls itself no training": (
        "chatml",
        chat(u("Hi"), a("No!", is_train=False), u("Go"), a("Yes.")),
        ["messages[1].is_train", "False"],
    ),
    "turns with other names": (
        "chatml",
        chat({"role": "user", "text": "Hi"}),
        ["content: neither", "['role', 'text']"],
    ),
    "answers to choose from": ("chatml", {"question": "Q?", "A": "1", "B": 2, "answer": "A"}, ["fields A, B"]),
    "an undesirable answer by number": ("none", {"prompt": "1+1=", "completion": "3", "label": 0}, ["field label"]),
    "no answer to learn": ("chatml", chat(u("Hi"), a("No!", weight=0)), ["none of 1 rows", "a weight of 1"]),
    "no template": ("none", chat(u("Hi"), a("Yes?")), ["chat template", "prompt and completion"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_by_name(name: str, make: Make, tmp_path: Path) -> None:
    family, row, words = REFUSED[name]
    with pytest.raises(RequestError) as error:
        encode(row, make(family), tmp_path)
    assert len(error.value.problems) == 1
    of_all = name in ("no answer to learn", "no template")  # which no row is to blame for
    for word in words if of_all else ("rows.jsonl, row 1", *words):
        assert word in str(error.value)


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
