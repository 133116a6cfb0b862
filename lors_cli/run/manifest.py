"""``lors.json``: how a directory came to be. Written last, so a directory that has one is complete."""

import json
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from lors_cli.artifacts import digest
from lors_cli.errors import LorsError
from lors_cli.models import memory
from lors_cli.run import environment

NAME = "lors.json"


def read(directory: Path) -> dict[str, Any] | None:
    """The manifest of `directory`, or None where there is none.

    Raises:
        LorsError: it cannot be read as JSON.

    """
    path = directory / NAME
    if not path.is_file():
        return None
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise LorsError(f"{path} is damaged ({error}); make the directory again with --force") from None
    return content


def input_digest(directory: Path, name: str) -> str | None:
    """The digest of the input `name` that `directory` was made from; None where that is not recorded."""
    found: str | None = (read(directory) or {}).get("request", {}).get("inputs", {}).get(name)
    return found


def original_digest(pruned: Path) -> str | None:
    """The digest of the model that a pruned one, aligned or not, was made from; None where that is not recorded."""
    found: str | None = (read(pruned) or {}).get("original") or input_digest(pruned, "model")
    return found


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of nested dictionaries by their dotted keys."""
    if isinstance(value, dict) and value:
        return {k: v for name, part in value.items() for k, v in flat(part, f"{prefix}.{name}".strip(".")).items()}
    return {prefix: value}


def build(
    directory: Path, stage: str, request: dict[str, Any], seconds: float, facts: dict[str, Any]
) -> dict[str, Any]:
    """The manifest of a finished `directory`."""
    return {
        "stage": stage,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(sys.argv),
        "request": request,
        "digest": digest.of_directory(directory),
        **facts,
        "versions": environment.versions(),
        "hardware": environment.hardware(),
        "seconds": round(seconds, 2),
        "peak_memory": memory.peaks(),
    }
