"""Small files, written whole or not at all."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lors_cli.errors import LorsError, name_file

CARD = "README.md"  # the model card of a directory
LARGEST, DEEPEST = 1 << 25, 64  # of a file of settings


def card_data(directory: Path) -> dict[str, Any]:
    """What the head of a directory's model or data card says; nothing where there is none that can be read."""
    from huggingface_hub import metadata_load

    try:
        return metadata_load(directory / CARD) or {}
    except Exception:  # whatever somebody else's README holds, or that there is none, stops no work
        return {}


def each_key_once(said: str) -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    """An ``object_pairs_hook`` for JSON that raises ValueError with `said` of a key that stands in an object twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) < len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(said.format(next(name for name in names if names.count(name) > 1)))
        return entries

    return once


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of settings.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds something else, or more than settings ever do: `LARGEST` bytes, `DEEPEST` levels.

    """
    if path.stat().st_size > LARGEST:
        raise ValueError(f"it has {path.stat().st_size:,} bytes, and a file of settings has no {LARGEST:,}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        deep = _depth(content) > DEEPEST
    except RecursionError:
        deep = True
    if deep:
        raise ValueError(f"it is nested deeper than {DEEPEST} levels")
    if not isinstance(content, dict):
        raise ValueError(f"it holds {type(content).__name__}, not an object")
    return content


def _depth(value: Any) -> int:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if parts is None else 1 + max(map(_depth, parts), default=0)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, whole or not at all.

    Raises:
        LorsError: the write failed.
        ValueError: a number is not finite, which JSON does not have.

    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file of text, whole or not at all; errors as in `write_bytes`."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all.

    Raises:
        LorsError: the write failed.

    """
    aside = path.with_name(f".{path.name}.new")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError as error:
        raise write_failed(path, error) from None


def write_failed(path: Path, error: BaseException) -> LorsError:
    """The error for a write that did not succeed, with the space that is left."""
    if isinstance(error, OSError):
        name_file(error)
    free = shutil.disk_usage(path.parent).free
    return LorsError(
        f"cannot write {path}: {error} ({free / 1e9:.2f} GB free there); free space or set another output_dir"
    )
