"""Rows that need no chat template: Alpaca's, by its own prompts, and prompts that are continued as they are.

Conversations take the form of Alpaca's prompts as well, where that is asked for: base models have no template.
"""

from lors_cli.data.example import Span, Text
from lors_cli.data.fields import Fields, Place
from lors_cli.data.turns import LISTS, Conversation

# The prompts of Stanford Alpaca (Taori et al. 2023), which the papers train with.
WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)
WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
)
SYSTEM = ("system", "system_prompt")


def alpaca(row: Fields, end: str) -> Text:
    """{instruction, input?, output}, with Dolly's names too; system takes the place of the first paragraph.

    history, a list of [question, answer], comes before as turns of the same form, whose answers are learnt as well;
    `end` is the text of the end token after each of them.

    Raises:
        RequestError: a field is missing, or is not what it should be.

    """
    instruction, answer = row.text("instruction"), row.text("output", "response")
    context = row.text("input", "context") if row.take("input", "context") is not None else ""
    system = row.text(*SYSTEM) if row.take(*SYSTEM) else (WITH_INPUT if context else WITHOUT_INPUT)
    text, spans = system, list[Span]()
    for asked, answered in _history(row):
        text += _turn(asked, "")
        spans.append((len(text), len(text) + len(answered + end)))
        text += answered + end
    text += _turn(instruction, context)
    spans.append((len(text), len(text) + len(answer)))
    return Text(text + answer, spans, special=True)


def has_turns(row: Fields) -> bool:
    """Whether a row to be read as Alpaca's is a conversation, or OpenOrca's question, and no instruction."""
    return "instruction" not in row and any(name in row for name in (*LISTS, "question"))


def conversation(said: Conversation, place: Place, end: str) -> Text:
    """Turns in the same form, each question as an instruction; a system turn takes the place of the first paragraph.

    Raises:
        RequestError: they are not of a user and an assistant in turn, or hold more than texts.

    """
    turns, learnt = list(said.turns), list(said.learnt)
    system = turns.pop(0)["content"] if turns[0]["role"] == "system" else ""
    learnt = learnt[len(learnt) - len(turns) :]
    remedy = "use a tokenizer with a chat template and format: chat, or remove the row"
    roles = [turn["role"] for turn in turns]
    if roles != ["user", "assistant"] * (len(roles) // 2):
        expected = "turns of user and assistant, one after the other, after at most one of system"
        raise place.error("", f"{expected}: all that Alpaca's prompts have", f"roles {roles}", remedy)
    more = next((key for turn in turns for key in turn if key not in ("role", "content")), next(iter(said.given), ""))
    if more:
        expected = "turns of text alone, which Alpaca's prompts can hold"
        raise place.error(more, expected, f"a turn or row with {more}", remedy)
    text, spans = system or WITHOUT_INPUT, list[Span]()
    for asked, answer, learn in zip(turns[::2], turns[1::2], learnt[1::2], strict=True):
        text += _turn(asked["content"], "")
        last = answer is turns[-1]
        whole = answer["content"] + ("" if last else end)
        if learn:
            spans.append((len(text), len(text) + len(whole)))
        text += whole
    return Text(text, spans, special=True)


def _turn(instruction: str, context: str) -> str:
    given = f"\n\n### Input:\n{context}" if context else ""
    return f"\n\n### Instruction:\n{instruction}{given}\n\n### Response:\n"


def _history(row: Fields) -> list[tuple[str, str]]:
    history = row.take("history") or []
    if not isinstance(history, list):
        raise row.place.error("history", "a list of [question, answer]", f"{history!r:.80}")
    for pair in history:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise row.place.error("history", "a list of [question, answer]", f"{pair!r:.80}")
    return [(asked, answered) for asked, answered in history]


def completion(row: Fields) -> Text:
    """{prompt, completion}, or the chosen one of two: the prompt is continued as it is, with nothing in between.

    Raises:
        RequestError: a field is missing, or is not text.

    """
    prompt, answer = row.text("prompt"), row.text("completion", "chosen")
    return Text(prompt + answer, [(len(prompt), len(prompt) + len(answer))], special=True)
