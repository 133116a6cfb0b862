"""Results item by item, compressed, for paired comparisons: JSON lines that are the same bytes each time."""

import gzip
import io
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lors_cli.artifacts.publish import flush

FOLDER = "items"
PERPLEXITY = "perplexity"


def folder(model: str, position: int) -> str:
    """Where the items of a model are, relative to the results; `position` tells models of similar names apart."""
    plain = re.sub(r"[^A-Za-z0-9.-]+", "_", model).strip("_.")
    return f"{FOLDER}/{model if plain == model else f'{position}_{plain[-60:]}'}"


def write(path: Path, items: Iterable[dict[str, Any]]) -> None:
    """Write `items` into the gzipped JSON lines `path`, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.BytesIO()
    with gzip.GzipFile(fileobj=text, mode="wb", mtime=0) as file:
        file.write("".join(json.dumps(item) + "\n" for item in items).encode())
    aside = path.with_name(path.name + ".new")
    aside.write_bytes(text.getvalue())
    flush(aside)
    aside.rename(path)


def read(path: Path) -> list[dict[str, Any]]:
    """The items in `path`."""
    with gzip.open(path, "rb") as file:
        lines = file.read().splitlines()
    # parsed in one go, which takes half the time: a report reads hundreds of thousands
    found: list[dict[str, Any]] = json.loads(b"[" + b",".join(lines) + b"]")
    return found
