"""Whether a chat template has rendered everything that it was given, by what it does and not by how it is written.

A value is rendered if the text has it, as often as the conversation does. Where that is not plain to see, the value
is changed: a template that leaves it out gives the same text.
"""

import copy
import json
from collections.abc import Iterator
from typing import Any

from lors_cli.data.template import FAILURES, Template, Turns
from lors_cli.errors import RequestError

# What says only which turn belongs to which, or what kind of thing something is; templates may do without it.
LINKS = ("role", "type", "id", "tool_call_id", "strict", "additionalProperties", "$schema")
NEEDED = ("content", "tool_calls")  # without them a turn says something else, so leaving them out is no remedy
MARK = "Q7z"  # nothing that a template would trim, or that has a meaning for one
Leaf = tuple[tuple[str | int, ...], Any]


class _Key(str):
    """A key that is a part of what is said, as the name of an argument is."""

    __slots__ = ()


def check(template: Template) -> None:
    """Refuse a conversation of which a part is in none of its renderings.

    Raises:
        RequestError: naming the part.

    """
    leaves = [list(_leaves(turn)) for turn in template.turns]
    whole = _Rendering(template.whole, leaves, template)
    answers = [index for index, turn in enumerate(template.turns) if turn["role"] == "assistant"]
    for leaf in _leaves(template.given, whole.text):
        if not whole.has(leaf[1]) and not any(_matters(template, leaf, None, then) for then in answers):
            raise _error(template, leaf, None)
    for index, turn in enumerate(leaves):
        missing = [leaf for leaf in turn if not whole.has(leaf[1])]
        if not missing:
            continue
        # a template may leave out of an earlier turn what it had when the next answer was given, such as reasoning
        then = next((answer for answer in answers if answer >= index), len(leaves) - 1)
        text = _Rendering(template.until(then), leaves[: then + 1], template)
        for leaf in missing:
            if not text.has(leaf[1]) and not _matters(template, leaf, index, then):
                raise _error(template, leaf, index)


class _Rendering:
    """A text that a template has made of the `leaves` of some turns, and of what is given beside them."""

    def __init__(self, text: str, leaves: list[list[Leaf]], template: Template) -> None:
        self.text, self._source = _squeeze(text), _squeeze(template.source)
        said = [json.dumps(template.given, ensure_ascii=False), *(turn["role"] for turn in template.turns)]
        said += [str(value) for turn in leaves for _, value in turn]
        self._said = "\n".join(map(_squeeze, said))

    def has(self, value: Any) -> bool:
        """Whether it plainly has a value, wherever the conversation has it; JSON counts as the text that it is for."""
        return isinstance(value, str) and any(
            self._is_in(form) for form in (value, json.dumps(value, ensure_ascii=False)[1:-1])
        )

    def _is_in(self, value: str) -> bool:
        value = _squeeze(value)
        # what the template says by itself proves nothing
        return value not in self._source and self.text.count(value) >= max(self._said.count(value), 1)


def _leaves(value: Any, text: str = "", path: tuple[str | int, ...] = ()) -> Iterator[Leaf]:
    """The texts, numbers and truths in a structure that say something, without objects that `text` has as JSON."""
    if isinstance(value, dict) and text and _squeeze(json.dumps(value, ensure_ascii=False)) in text:
        return
    if isinstance(value, dict):
        for key, item in value.items():
            if not (key in LINKS and (text or len(path) in (0, 2))):  # of a turn, of a call, or of what is given
                yield from _leaves(item, text, (*path, key))
                if "arguments" in path or path[-1:] == ("properties",):
                    yield (*path, _Key(key)), key
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _leaves(item, text, (*path, index))
    elif value is not None and _squeeze(str(value)):
        yield path, value


def _matters(template: Template, leaf: Leaf, index: int | None, then: int) -> bool:
    """Whether the whole text, or that up to the turn `then`, changes with a value, wherever it is changed.

    It is one of the turn `index`, or of what is given beside the turns.
    """
    path, value = leaf
    return all(_changes(template, path, changed, index, then) for changed in _others(value))


def _others(value: Any) -> list[Any]:
    if isinstance(value, bool):
        return [not value]
    return [MARK + value, value + MARK] if isinstance(value, str) else [value + 1]


def _changes(template: Template, path: tuple[str | int, ...], value: Any, index: int | None, then: int) -> bool:
    if index is None:
        given = copy.deepcopy(template.given)
        _put(given, path, value)
        turns: Turns = template.turns
    else:
        given, turns = {}, copy.deepcopy(template.turns)
        _put(turns[index], path, value)
    try:
        if template.render(turns, **given) != template.whole:
            return True
        if template.render(turns[: then + 1], **given) != template.until(then):
            return True
        # an option, such as enable_thinking, may change only how answers begin
        is_option = index is None and len(path) == 1 and not isinstance(value, str)
        return is_option and then > 0 and template.render(turns[:then], prompt=True, **given) != template.prompt(then)
    except FAILURES:
        return True


def _put(structure: Any, path: tuple[str | int, ...], value: Any) -> None:
    for step in path[:-1]:
        structure = structure[step]
    if isinstance(path[-1], _Key):
        renamed = {value if key == path[-1] else key: held for key, held in structure.items()}
        structure.clear()
        structure.update(renamed)
    else:
        structure[path[-1]] = value


def _error(template: Template, leaf: Leaf, index: int | None) -> RequestError:
    path, value = leaf
    name = str(path[0])
    where = f"{name} of turn {index + 1} (role {template.turns[index]['role']})" if index is not None else name
    expected = f"a chat template that renders {where} as a whole"
    if name not in NEEDED:
        return template.place.unused({name: value}, expected)
    remedy = "use a tokenizer whose chat template renders it, or repair the row"
    if index is not None and template.turns[index]["role"] == "system":
        remedy = f"use a tokenizer whose chat template renders it, or {template.without_system}"
    return template.place.error("", expected, f"{value!r:.80}, of which the text does not have all", remedy)


def _squeeze(text: str) -> str:
    return "".join(text.split())
