"""What is learnt of rows of all formats, beside what a person would say is learnt."""

import json
from pathlib import Path

import pytest

from tests.data.turns import ASKED, CALLED, NO_THOUGHT, WEATHER, Make, Row, a, call, chat, encode, learnt, s, u

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
