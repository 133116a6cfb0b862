"""SHA-256 digests of files and directories, so that a result names exactly what it was made from."""

import hashlib
import json
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any

from lors_cli.artifacts import model_files

# What a model or adapter is made of: weights, configs, tokenizer, templates, code. Anything else (a README) may change.
CONTENT = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.tiktoken", "*.py", "merges.txt", "vocab.txt")


def of_file(path: Path) -> str:
    """The digest of a file's bytes. A file is read once per process unless it changes."""
    status = path.stat()
    return _of_file(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=256)
def _of_file(path: Path, size: int, modified: int) -> str:
    with path.open("rb") as file:
        return _hash_stream(file)


def _hash_stream(file: Any) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(1 << 22):
        digest.update(chunk)
    return digest.hexdigest()


def of_directory(directory: Path) -> str:
    """The digest of the model or adapter in `directory`: of the names and contents of the files in `CONTENT`."""
    return of_files(model_files.files(directory))


def of_files(files: dict[str, Path]) -> str:
    """The digest that a directory of these files, by name, has."""
    content = [name for name in files if any(fnmatchcase(name, pattern) for pattern in CONTENT) and name != "lors.json"]
    return of_value({name: of_file(files[name]) for name in content})


def of_value(value: Any) -> str:
    """The digest of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
