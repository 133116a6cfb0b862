"""Results item by item, compressed, for paired comparisons: JSON lines that are the same bytes each time."""

import gzip
import io
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lors_cli.artifacts import files

FOLDER = "items"
PERPLEXITY = "perplexity"
NAME = re.compile(rb'"doc_id": \d+, "doc": "[^"]*", "prompt": "[^"]*"')


def folder(model: str, position: int) -> str:
    """Where the items of a model are, relative to the results; `position` tells models of similar names apart."""
    plain = re.sub(r"[^A-Za-z0-9.-]+", "_", model).strip("_.")
    return f"{FOLDER}/{model if plain == model else f'{position}_{plain[-60:]}'}"


def write(path: Path, items: Iterable[dict[str, Any]]) -> None:
    """Write `items` into the gzipped JSON lines `path`, whole or not at all.

    Raises:
        LorsError: the write failed.

    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.BytesIO()
    with gzip.GzipFile(fileobj=text, mode="wb", mtime=0) as file:
        file.write("".join(json.dumps(item, allow_nan=False) + "\n" for item in items).encode())
    files.write_bytes(path, text.getvalue())


def read(path: Path) -> list[dict[str, Any]]:
    """The items in `path`."""
    return _parsed(gzip.decompress(path.read_bytes()))


def answers(path: Path, metric: str) -> tuple[bytes, list[float]]:
    """What identifies the items of a task in `path`, one after another, and their values of a metric.

    Raises:
        KeyError, TypeError, ValueError: an item does not have a single number of that name.

    """
    text = gzip.decompress(path.read_bytes())
    # Lines that `write` made are read by two expressions in a third of the time of a parser: a report of many runs
    # reads millions. Whatever else a line may hold, it is parsed.
    names = NAME.findall(text)
    values = re.findall(re.escape(json.dumps(metric)).encode() + rb": (-?[0-9][-+0-9.eE]*)[,}]", text)
    if len(names) == len(values) == text.count(b"\n"):
        numbers = {value: float(value) for value in set(values)}  # there are two, right and wrong
        return b"\n".join(names), [numbers[value] for value in values]
    items = _parsed(text)
    named = (json.dumps({key: item[key] for key in ("doc_id", "doc", "prompt")})[1:-1] for item in items)
    return "\n".join(named).encode(), [float(item[metric]) for item in items]


def _parsed(text: bytes) -> list[dict[str, Any]]:
    """JSON lines, parsed in one go, which takes half the time."""
    items: list[dict[str, Any]] = json.loads(b"[" + b",".join(text.splitlines()) + b"]")
    return items
