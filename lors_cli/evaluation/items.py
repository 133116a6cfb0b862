"""Results item by item, compressed, for paired comparisons: JSON lines that are the same bytes each time."""

import gzip
import hashlib
import io
import json
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lors_cli.artifacts import digest, files

FOLDER = "items"
PERPLEXITY = "perplexity"
PART = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"  # the name of one of several perplexities
TASK = re.compile(r"\w(?:[\w .,:+=@()-]*[\w)+])?")  # of its name, and of the file of its items
TASK_BYTES = 200
TASK_NAMES = f"letters, digits and _ .,:+=@()- in at most {TASK_BYTES} bytes, and not {PERPLEXITY!r}"
NAME = re.compile(rb'"doc_id": \d+, "doc": "[^"]*", "prompt": "[^"]*"')


def folder(model: str, position: int) -> str:
    """Where the items of a model are, relative to the results; `position` tells models of similar names apart."""
    plain = re.sub(r"[^A-Za-z0-9.-]+", "_", model).strip("_.")
    return f"{FOLDER}/{model if plain == model else f'{position}_{plain[-60:]}'}"


def is_task(name: str) -> bool:
    """Whether a task may have this name, which becomes that of a file."""
    return bool(TASK.fullmatch(name)) and len(name.encode()) <= TASK_BYTES and file_key(name) != PERPLEXITY


def of_perplexity(name: str) -> str:
    """The name of the file of a perplexity's items: that of one of several has a character that no task has."""
    return f"{PERPLEXITY}~{name}" if name else PERPLEXITY


def file_key(name: str) -> str:
    """What is equal for the names of two tasks whose files some file systems take for one."""
    return unicodedata.normalize("NFC", name.casefold())


def write(path: Path, items: Iterable[dict[str, Any]]) -> str:
    """Write `items` into the gzipped JSON lines `path`, whole or not at all; the SHA-256 of the file.

    Raises:
        LorsError: the write failed.

    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.BytesIO()
    with gzip.GzipFile(fileobj=text, mode="wb", mtime=0) as file:
        file.write("".join(json.dumps(item, allow_nan=False) + "\n" for item in items).encode())
    files.write_bytes(path, text.getvalue())
    return hashlib.sha256(text.getvalue()).hexdigest()


def damage(path: Path, wanted: str) -> str | None:
    """Why `path` is not the file that `write` gave the SHA-256 `wanted`; None if it is."""
    if not path.is_file():
        return "is missing"
    return None if digest.of_bytes(path) == wanted else "does not have the bytes that were written"


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
