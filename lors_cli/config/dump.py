"""A config as text that `load` reads back to the same."""

import json
import re
from collections.abc import Iterator
from typing import Any


def as_yaml(content: dict[str, Any]) -> str:
    """Plain data as a YAML 1.2 document: sections are indented, and every leaf is written as JSON, which YAML contains.

    So texts are in quotes, and readers of YAML 1.1 do not take 2:4 for a number. PyYAML's own writer would write for
    1.1: 1e-05 as 1.0e-05, and 2:4 without quotes.
    """
    return "".join(f"{line}\n" for line in _lines(content, ""))


_UNSAFE = re.compile("[\x7f-\x9f\u2028\u2029]")  # what readers of YAML refuse, or take for the end of a line


def _lines(section: dict[str, Any], indent: str) -> Iterator[str]:
    for key, value in section.items():
        if isinstance(value, dict) and value:
            yield f"{indent}{key}:"
            yield from _lines(value, f"{indent}  ")
        else:
            leaf = _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", json.dumps(value, ensure_ascii=False))
            yield f"{indent}{key}: {leaf}"
