"""Points of a grid: the values of some keys of a config, and a directory's name for them."""

import json
import re
from collections import Counter
from typing import Any

from lors_cli.artifacts import digest
from lors_cli.config.schema import Config

LONGEST = 48  # characters of a value in a name; a directory's name has at most 255
PAIRS = {"'": "'", '"': '"', "[": "]", "{": "}"}


def split(text: str) -> list[str]:
    """The parts between the commas of a value, but not those inside [], {} or quotes."""
    parts, closing = [""], ""
    for character in text:
        if character == "," and not closing:
            parts.append("")
            continue
        quoted = closing[-1:] in ("'", '"')
        starts = character in "[{" or parts[-1].rstrip()[-1:] in ("", *"[{,:")  # no apostrophe inside a word
        if closing and character == closing[-1]:
            closing = closing[:-1]
        elif character in PAIRS and starts and not quoted:
            closing += PAIRS[character]
        parts[-1] += character
    return [part.strip() for part in parts]


def labels(keys: list[str]) -> dict[str, str]:
    """The last part of each key; where two have the same, the keys themselves."""
    last = Counter(key.rsplit(".", 1)[-1] for key in keys)
    return {key: key if last[key.rsplit(".", 1)[-1]] > 1 else key.rsplit(".", 1)[-1] for key in keys}


def value(config: Config, key: str, text: str) -> Any:
    """What the config has for the key, so that 3e-4 and 0.0003 are one; for a list or a section, what was typed."""
    part: Any = config.model_dump(mode="json")
    for name in key.split("."):
        part = part.get(name) if isinstance(part, dict) else None
    return text if isinstance(part, dict | list) else part


def name(values: dict[str, Any]) -> str:
    """A directory's name for a point: readable, and the same whenever the values are."""
    label = labels(list(values))
    joined = ",".join(f"{label[key]}={_safe(one)}" for key, one in values.items())
    return joined if len(joined) <= 4 * LONGEST else f"{joined[: 3 * LONGEST]}-{digest.of_value(values)[:8]}"


def _safe(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    safe = re.sub(r"[^A-Za-z0-9._+-]+", "-", text)
    if safe == text.replace(":", "-") and len(safe) <= LONGEST:  # 2:4 stays readable
        return safe
    return f"{safe[:LONGEST]}-{digest.of_value(text)[:8]}"
