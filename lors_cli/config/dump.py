"""A config as text that `load` reads back to the same."""

import json
from collections.abc import Iterator
from typing import Any


def as_yaml(content: dict[str, Any]) -> str:
    """Plain data as a YAML 1.2 document: sections are indented, and every leaf is written as JSON, which YAML contains.

    So texts are in quotes, and readers of YAML 1.1 do not take 2:4 for a number.
    """
    return "".join(f"{line}\n" for line in _lines(content, ""))


def _lines(section: dict[str, Any], indent: str) -> Iterator[str]:
    for key, value in section.items():
        if isinstance(value, dict) and value:
            yield f"{indent}{key}:"
            yield from _lines(value, f"{indent}  ")
        else:
            yield f"{indent}{key}: {json.dumps(value, ensure_ascii=False)}"
