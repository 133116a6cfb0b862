"""Rows in files, and what is read of them."""

import json
from pathlib import Path
from typing import Any

from lors_cli.data.sources import Source


def make(root: Path, *names: str) -> Path:
    """Files of rows, each with its own place as its text."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(json.dumps({"text": name}) + "\n")
    return root


def source(path: object, key: str = "train.dataset", **options: Any) -> Source:
    return Source(path=str(path), key=key, **options)


def texts(path: object, key: str = "train.dataset", **options: Any) -> list[str]:
    return list(source(path, key, **options).texts())
