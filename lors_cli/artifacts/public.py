"""What may leave the machine: names of files and folders, but not where they lie, and nobody's secrets."""

import os
import re
from typing import Any

# In a command line: from a slash, or a tilde before it, that begins a word or a value to that one's end.
PATH = re.compile(r"(?<![\w.~/-])~?(?:/[^\s/,\]}'\"]+)+/?")

HIDDEN = "<secret>"
NAME_AND_PASSWORD = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^/\s@]+@")
TOKEN = re.compile(r"\b(hf_|sk-|gh[opsu]_|github_pat_|glpat-)[A-Za-z0-9_-]{16,}")
# Variables of the environment whose values are nobody else's business, if they are long enough to be recognised.
OF_SECRETS, SHORTEST = re.compile(r"TOKEN(?!IZ)|SECRET|PASSWORD|CREDENTIAL|API_?KEY", re.IGNORECASE), 8


def without_secrets(text: str) -> str:
    """A text without what looks like a token, a name and password in an address, or stands in a secret variable.

    A variable that holds the path of a file, such as that of a token, is no secret.
    """
    text = TOKEN.sub(HIDDEN, NAME_AND_PASSWORD.sub(r"\1", text))
    inside = [name for name, value in os.environ.items() if len(value) >= SHORTEST and value in text]
    for value in sorted((os.environ[name] for name in inside if OF_SECRETS.search(name)), key=len, reverse=True):
        text = text if os.path.exists(value) else text.replace(value, HIDDEN)
    return text


def hidden(value: Any) -> Any:
    """Plain data with every text as in `without_secrets`; keys stay."""
    if isinstance(value, dict):
        return {key: hidden(part) for key, part in value.items()}
    if isinstance(value, list):
        return [hidden(part) for part in value]
    return without_secrets(value) if isinstance(value, str) else value


def without_places(value: Any) -> Any:
    """Plain data with every absolute path reduced to its last part, also in keys and in a recorded command line.

    Secrets go as in `without_secrets`.
    """
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
    """The last part of an absolute path; anything else as it is, but secrets."""
    if not isinstance(value, str):
        return value
    value = value.removeprefix("file://")
    if re.match(r"[A-Za-z]:\\", value):  # on whatever machine it was written
        value = value[2:].replace("\\", "/")
    absolute = value.startswith(("/", "~")) and "\n" not in value
    return without_secrets(value.rstrip("/").rpartition("/")[2] or value if absolute else value)


def _command(line: Any) -> Any:
    return PATH.sub(lambda place: _short(place[0]), without_secrets(line)) if isinstance(line, str) else line


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for pair in value.items() for part in pair for text in _texts(part)]
    if isinstance(value, list):
        return [text for part in value for text in _texts(part)]
    return [value] if isinstance(value, str) else []
