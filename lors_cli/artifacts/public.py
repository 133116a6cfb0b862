"""What may leave the machine: names of files and folders, but not where they lie."""

import re
from typing import Any

# In a command line: from a slash, or a tilde before it, that begins a word or a value to that one's end.
PATH = re.compile(r"(?<![\w.~/-])~?(?:/[^\s/,\]}'\"]+)+/?")


def without_places(value: Any) -> Any:
    """Plain data with every absolute path reduced to its last part, also in keys and in a recorded command line."""
    if isinstance(value, dict):
        return {_short(key): _command(v) if key == "command" else without_places(v) for key, v in value.items()}
    if isinstance(value, list):
        return [without_places(part) for part in value]
    return _short(value)


def text_without_places(text: str, value: Any) -> str:
    """A text with the absolute paths that occur in `value` reduced likewise."""
    places = {part for part in _texts(value) if _short(part) != part}
    for part in sorted(places, key=len, reverse=True):  # the longest first: one may begin with another
        text = text.replace(part, _short(part))
    return text


def _short(value: Any) -> Any:
    """The last part of an absolute path; anything else as it is."""
    absolute = isinstance(value, str) and value.startswith(("/", "~")) and "\n" not in value
    return value.rstrip("/").rpartition("/")[2] or value if absolute else value


def _command(line: Any) -> Any:
    return PATH.sub(lambda place: _short(place[0]), line) if isinstance(line, str) else line


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for pair in value.items() for part in pair for text in _texts(part)]
    if isinstance(value, list):
        return [text for part in value for text in _texts(part)]
    return [value] if isinstance(value, str) else []
