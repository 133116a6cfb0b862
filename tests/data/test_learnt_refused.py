"""Rows of which something would be lost, or cannot be learnt: each is refused by name."""

from pathlib import Path

import pytest

from lors_cli.errors import RequestError
from tests.data.turns import ASKED, PARIS, WEATHER, Make, Row, a, call, chat, encode, s, t, u

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
    "no template": ("none", chat(u("Hi"), a("Yes?")), ["chat template", "format: alpaca"]),
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
