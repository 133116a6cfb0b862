"""Conversations out of rows: turns as chat templates take them, with everything that the rows hold.

{messages: [{role, content}]}                     also conversations, and ShareGPT's {from, value}
{prompt, completion} of turns, {prompt, chosen}   the completion is learnt, the prompt's answers are context
{question, answer}                                and other names of the two, such as OpenOrca's with system_prompt

The keys of turns are those of OpenAI's API, with the names that other formats give them.
"""

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from lors_cli.data.fields import Fields, is_metadata, without_nulls

LISTS = ("messages", "conversations", "conversation")
QUESTIONS = ("question", "query", "prompt", "problem", "input", "inputs")
ANSWERS = ("answer", "response", "output", "completion", "solution", "target", "targets")
SYSTEM = ("system", "system_prompt", "system_message")
CALLS = ("function_call", "tool_call")  # roles whose turn is a call
ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot", "chatgpt", "ai", *CALLS), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "function_response", "tool_response", "ipython"), "tool"),
    "system": "system",
    "developer": "developer",
}
# Given to the template under their own names; what it does with them is tested.
REASONING = ("reasoning_content", "reasoning", "thinking")
GIVEN = ("tools", "documents")  # to templates, by the library's own arguments
LEARN_IF_TRUE = ("weight", "train", "training", "trainable", "loss", "loss_mask", "loss_weight", "learn")
LEARN_IF_FALSE = ("masked",)


@dataclass(frozen=True)
class Conversation:
    """What one row says.

    Attributes:
        turns: with role and content, and tool_calls, reasoning and names where there are any.
        learnt: of each turn, whether the model learns to say it.
        given: what else the template gets: tools, documents, and what the row has for it under other names.
        system: the field of the row that the system turn is from; nothing if it is a turn of its own.
        left_out: the name of a switch by which the row leaves one of its turns out of what is learnt, if it has one.

    """

    turns: list[dict[str, Any]]
    learnt: list[bool]
    given: dict[str, Any]
    system: str = ""
    left_out: str | None = None


def conversation(row: Fields, ignore: Collection[str] = ()) -> Conversation:
    """The conversation of a row; `ignore` are keys of turns that the config leaves out.

    Raises:
        RequestError: there is none, none with an assistant's turn, or something in it cannot be used.

    """
    before, turns = _lists(row)
    reader = _Turns(row, ignore)
    context = [(turn, False) for turn, _ in reader.read(*before)] if before else []
    read = context + reader.read(*turns)
    field = next((name for name in SYSTEM if name in row), "")
    if (system := row.take(*SYSTEM)) and isinstance(system, str):
        first = read[0][0]
        if first["role"] == "system" and first["content"] != system:
            raise row.place.error("system", "one system prompt", "one in the row and another in its first turn")
        if first["role"] == "system":
            field = ""  # it would still be there without the field
        else:
            read.insert(0, ({"role": "system", "content": system}, False))
    elif system:
        raise row.place.error("system", "text", f"{system!r:.80}")
    roles = [turn["role"] for turn, _ in read]
    if "assistant" not in roles:
        expected = "messages, a list of {role, content} with at least one of role assistant"
        raise row.place.error("", expected, f"roles {roles}")
    given = {"tools": _tools(row), "documents": _json(row, "documents", list, row.take("documents"))}
    if given["tools"] and _says(read[0][0], given["tools"]):
        del given["tools"]  # as in sets for Hermes: a template would say them twice
    given = {name: value for name, value in given.items() if value} | _options(row, ignore)
    return Conversation([turn for turn, _ in read], [learn for _, learn in read], given, field, reader.left_out)


Named = tuple[str, Any]  # a list of turns with the name of its field


def _lists(row: Fields) -> tuple[Named | None, Named]:
    """The turns of a row that are only context, if they stand apart, and those that are learnt."""
    lists = (row.place.source.field,) if row.place.source.field else LISTS
    for name in lists:
        if name in row:
            said = row.take(*lists)
            return None, (name, _spoken(_json(row, name, (list, dict), said) if isinstance(said, str) else said))
    answer = next((name for name in ("chosen", *ANSWERS) if name in row), None)
    question = next((name for name in QUESTIONS if name in row), None)
    if answer is None or (question is None and not isinstance(row.look(answer), list)):
        expected = (
            "messages, a list of {role, content} with at least one of role assistant, or a question and an answer"
        )
        raise row.place.error("", expected, f"fields {sorted(row.rest())}")
    said = _as_turns(row.take(answer), "assistant")
    if question is None:
        return None, (answer, said)
    asked = _as_turns(row.look(question), "user")
    if isinstance(said, list) and isinstance(asked, list):  # many sets of preferences repeat the prompt in the answer
        first = said[0] if said and isinstance(said[0], dict) else {}
        if said[: len(asked)] == asked:
            said = said[len(asked) :]
        elif ROLES.get(str(first.get("role", first.get("from")))) in ("user", "system"):
            return None, (answer, said)
    row.take(question)
    return (question, asked), (answer, said)


def _as_turns(value: Any, role: str) -> Any:
    return [{"role": role, "content": value}] if not isinstance(value, list | dict) else value


def _spoken(turns: Any) -> Any:
    """Turns of two speakers without roles, as of LIMA, or in pairs, as of Capybara, with them; others as they are."""
    if not isinstance(turns, list):
        return turns
    if turns and all(isinstance(turn, str) for turn in turns):
        return [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(turns)]
    if turns and all(isinstance(turn, dict) and turn.keys() == {"input", "output"} for turn in turns):
        roles = (("user", "input"), ("assistant", "output"))
        return [{"role": role, "content": turn[side]} for turn in turns for role, side in roles]
    return turns


class _Turns:
    """Reads the turns of a row, and remembers which functions were called."""

    def __init__(self, row: Fields, ignore: Collection[str]) -> None:
        self._row, self._ignore, self._called = row, ignore, set[str]()
        self.left_out: str | None = None

    def read(self, name: str, turns: Any) -> list[tuple[dict[str, Any], bool]]:
        """Each turn, and whether it is learnt."""
        columns = list(turns.values()) if isinstance(turns, dict) else []
        if columns and all(isinstance(column, list) and len(column) == len(columns[0]) for column in columns):
            # as `datasets` keeps a sequence of structs
            turns = [dict(zip(turns, values, strict=True)) for values in zip(*turns.values(), strict=True)]
        if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
            expected = "messages, a list of {role, content} with at least one of role assistant"
            raise self._row.place.error(name, expected, f"{turns!r:.80}")
        return [self._turn(turn, f"{name}[{index}]") for index, turn in enumerate(turns)]

    def _turn(self, row: dict[str, Any], where: str) -> tuple[dict[str, Any], bool]:
        fields = Fields(row, self._row.place.at(where), self._ignore)
        named = fields.text("role", "from")
        role = ROLES.get(named.lower())
        if role is None:
            raise fields.place.error("role", f"one of {', '.join(ROLES)}", repr(named))
        turn: dict[str, Any] = {"role": role}
        if named.lower() in CALLS:
            turn["content"], calls = "", fields.take("content", "value")
        else:
            turn["content"] = _content(fields)
            calls = fields.take("tool_calls")
            if legacy := fields.take("function_call"):
                calls = [*(calls or []), legacy]
        if calls:
            turn["tool_calls"] = self._calls(calls, fields)
        called = role == "tool" and fields.look("name") in self._called
        for key in (*REASONING, "name", "tool_call_id"):
            if fields.look(key) and not (called and key == "name"):
                turn[key] = fields.text(key)
        learnt, left_out = _is_learnt(fields, role)
        self.left_out = self.left_out or left_out
        if not any(value is not None for key, value in turn.items() if key != "role"):
            raise fields.place.error("content", "text, or tool_calls", f"neither, in a turn with {sorted(row)}")
        for key, value in fields.rest().items():
            if not is_metadata(key):
                raise fields.place.unused({key: value}, "a turn of role, content and what is known beside them")
        return turn | {"content": turn["content"] or ""}, learnt

    def _calls(self, calls: Any, fields: Fields) -> list[dict[str, Any]]:
        """Calls of functions as templates take them, whose arguments are an object and not its JSON."""
        parsed = _json(fields, "tool_calls", (list, dict), calls)
        return [self._call(call, fields) for call in (parsed if isinstance(parsed, list) else [parsed])]

    def _call(self, call: Any, fields: Fields) -> dict[str, Any]:
        place = fields.place.at("tool_calls")
        if not isinstance(call, dict):
            raise fields.place.error("tool_calls", "{function: {name, arguments}}", f"{call!r:.80}")
        outer = Fields(call, place, self._ignore)
        function = outer.take("function")
        inner = Fields(function, place.at("function"), self._ignore) if isinstance(function, dict) else outer
        name = inner.text("name")
        arguments = _json(inner, "arguments", dict, inner.take("arguments", "parameters")) or {}
        kind = outer.take("type")
        if kind not in (None, "", "function"):
            raise place.error("type", "function", repr(kind))
        identity = {"id": outer.take("id")} if outer.look("id") else {}
        for key, value in {**inner.rest(), **outer.rest()}.items():
            if not is_metadata(key):
                raise place.unused({key: value}, "a call of a name and its arguments")
        self._called.add(name)
        return {**identity, "type": "function", "function": {"name": name, "arguments": arguments}}


def _content(fields: Fields) -> str | None:
    """The text of a turn; of a list of parts, which all have to be text, joined."""
    content = fields.take("content", "value")
    if not isinstance(content, list):
        if content is not None and not isinstance(content, str):
            raise fields.place.error("content", "text", f"{content!r:.80}")
        return content
    if not content:
        return None
    texts = []
    for index, part in enumerate(content):
        place = fields.place.at(f"content[{index}]")
        if isinstance(part, str):
            texts.append(part)
            continue
        inner = Fields(part if isinstance(part, dict) else {}, place)
        if inner.take("type") not in (None, "text") or not isinstance(inner.look("text"), str):
            raise fields.place.error(f"content[{index}]", "a part of type text", f"{part!r:.80}")
        texts.append(inner.text("text"))
        for key, value in inner.rest().items():
            raise place.unused({key: value}, "a part of type and text")
    return "".join(texts)


def _is_learnt(fields: Fields, role: str) -> tuple[bool, str | None]:
    """Whether a turn is learnt: of the assistant's, those that no switch leaves out; and the name of that switch."""
    learnt, left_out = role == "assistant", None
    for key in (*LEARN_IF_TRUE, *LEARN_IF_FALSE):
        value = fields.take(key)
        if value is None:
            continue
        if value not in (0, 1):
            raise fields.place.unused({key: value}, "0, 1, true or false")
        asked = bool(value) == (key in LEARN_IF_TRUE)
        if asked and role != "assistant" and key in LEARN_IF_TRUE:
            raise fields.place.unused({key: value}, f"only turns of the assistant to be learnt, not of role {role}")
        learnt = learnt and asked
        left_out = left_out if asked else key
    return learnt, left_out


def _tools(row: Fields) -> list[Any] | None:
    """The functions that may be called, each {type: function, function: ...}."""
    tools = _json(row, "tools", list, row.take("tools", "functions"))
    for index, tool in enumerate(tools or []):
        if not isinstance(tool, dict) or not isinstance(tool.get("function", tool).get("name"), str):
            raise row.place.error(
                f"tools[{index}]", "{type: function, function: {name, description, parameters}}", f"{tool!r:.80}"
            )
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools or []]


def _says(turn: dict[str, Any], tools: list[Any]) -> bool:
    """Whether a system turn has the tools in its text already, as JSON or as Python writes it."""

    def plain(text: str) -> str:
        return re.sub(r"[\s'\"]", "", text).lower()

    said = plain(turn["content"] or "") if turn["role"] == "system" else ""
    return all(plain(json.dumps(tool["function"], ensure_ascii=False)) in said for tool in tools)


def _options(row: Fields, ignore: Collection[str]) -> dict[str, Any]:
    """What a row gives to the template beside its turns, such as enable_thinking."""
    options = _json(row, "chat_template_kwargs", dict, row.take("chat_template_kwargs")) or {}
    for name in GIVEN:
        if name in options:
            raise row.place.at("chat_template_kwargs").error(name, f"{name} beside the turns", f"{options[name]!r:.80}")
    return {name: value for name, value in options.items() if name not in ignore}


def _json(fields: Fields, name: str, kind: type | tuple[type, ...], value: Any) -> Any:
    """An object or a list that may be given as its JSON; None if it is empty. Nulls of parquet are not part of it."""
    expected = f"{'an object' if kind is dict else 'a list'}, or its JSON"
    if isinstance(value, str) and value.strip():
        try:
            parsed = json.loads(value)
        except ValueError as error:
            raise fields.place.error(name, expected, f"{value!r:.80}: {error}") from None
    else:
        parsed = without_nulls(value)
    if not parsed:
        return None
    if not isinstance(parsed, kind):
        raise fields.place.error(name, expected, f"{value!r:.80}")
    return parsed
