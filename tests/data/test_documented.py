"""Each row of the table in docs/data.md is a row that is tested."""

import re
from pathlib import Path

from tests.data.test_learnt import READ
from tests.data.test_learnt_refused import REFUSED

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
TESTED = {
    "`instruction`, `output`, `input`": ["Alpaca"],
    "`instruction`, `response`, `context` (Dolly)": ["Dolly"],
    "`system` beside an instruction": ["Alpaca with system"],
    "`history` beside an instruction": ["Alpaca with history", "a history of another form"],
    "`messages` of `role` and `content`": ["chatml", "llama 3", "gemma", "mistral", "zephyr", "no assistant"],
    "`conversations` of `from` and `value` (ShareGPT)": ["ShareGPT", "ShareGPT as columns"],
    "`conversations` of texts (LIMA), or of `input` and `output` (Capybara)": [
        *("texts in turn", "pairs", "a list of texts and turns", "a text alone"),
    ],
    "`conversations` with `function_call` and `observation`": ["ShareGPT with calls", "a call that is no JSON"],
    "`tool_calls` or `function_call` in a turn": [
        *("a call", "arguments as JSON", "the old function_call"),
        *("calls that are left out", "results that are left out", "arguments that are no JSON"),
    ],
    "`tools` beside the turns": [
        *("a call", "tools as JSON", "tools that are left out", "a parameter's name that is left out"),
        "tools that the system turn has",
    ],
    "`chat_template_kwargs` beside the turns": [
        *("an option of the template", "an option that does nothing", "an option that is none"),
        "tools among the options",
    ],
    "`reasoning_content`, `reasoning` or `thinking` in a turn": [
        *("reasoning", "reasoning in the answer"),
        *("reasoning that is left out", "thinking that is left out", "an opened thought"),
    ],
    "`weight`, `train`, `loss` or `masked` in a turn": ["weight 0", "train false", "masked", "a weight"],
    "`content` as a list of parts": ["parts of text", "a part", "a part of audio"],
    "`content` null": ["a call", "nothing said"],
    "`question` and `answer`": ["question and answer"],
    "`conversations` with `custom_instruction` and the like (OpenHermes-2.5)": ["OpenHermes"],
    "`system_prompt`, `question`, `response` (OpenOrca)": ["OpenOrca"],
    "`input` and `output`, `prompt` and `response`, `inputs` and `targets`": [
        *("input and output", "prompt and response", "inputs and targets"),
    ],
    "`prompt` and `completion` as texts": ["prompt and completion"],
    "`prompt` and `completion` as turns": ["turns of prompt and completion"],
    "`prompt`, `chosen`, `rejected` as texts": ["preference, texts", "rejected alone"],
    "`prompt`, `chosen`, `rejected` as turns": ["preference, turns", "preference, only turns"],
    "`label` beside a completion (KTO)": ["a desirable answer", "an undesirable answer"],
    "`images`, `audio`, `video`": ["images", "images of Alpaca", "images of text", "an unknown key", "a path"],
    "`documents`, `context`, other texts and lists": ["documents", "a context", "an unknown text"],
    "`id`, `source`, `category`, `score` and the like": ["question and answer", "preference, turns", "Dolly"],
    "`original_question` and the like; `text` or `prompt` with all of the row": [
        *("Alpaca", "an original image", "an original text", "a prompt of its own"),
    ],
}
ELSEWHERE = {"`text`"}  # tests/data/test_instructions.py


def test_each_row_of_the_table_is_tested() -> None:
    table = PAGE.read_text().split("| fields of a row |")[1].split("\n\n")[0]
    documented = {row for row in re.findall(r"^\| (.*?) \|", table, re.M) if row}
    assert documented - ELSEWHERE == TESTED.keys()
    for names in TESTED.values():
        assert set(names) <= READ.keys() | REFUSED.keys()
