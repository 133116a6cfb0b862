"""SHA-256 digests of files and directories, so that a result names exactly what it was made from."""

import hashlib
import json
import time
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

from lors_cli.artifacts import model_files
from lors_cli.errors import LorsError

# What a model or adapter is made of: weights, configs, tokenizer, templates, code. Anything else (a README) may change.
CONTENT = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.tiktoken", "*.py", "merges.txt", "vocab.txt")
ATTEMPTS = 3  # of reading a file that changes meanwhile
Signature: TypeAlias = tuple[int, int, int, int, int]
TICK = 20_000_000  # nanoseconds; the clocks by which file systems date changes are finer than that


def signature(path: Path) -> Signature:
    """What changes with a file: device, inode, size, and the times, in ns, at which its content and its status changed.

    Nobody can set the last of these back. Two changes within a tick of the clock have the same, so a file that has only
    just changed is waited for, as Git does.

    Raises:
        OSError: there is no such file.

    """
    status = path.stat()
    if 0 <= time.time_ns() - max(status.st_ctime_ns, status.st_mtime_ns) < TICK:
        time.sleep(TICK / 1e9)
        status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def signed(path: Path) -> tuple[Signature, str]:
    """The signature of a file and the digest of its bytes. A file is read once per process unless it changes.

    Raises:
        LorsError: it goes on changing while it is read.
        OSError: it cannot be read.

    """
    for _ in range(ATTEMPTS):
        before = signature(path)
        measured = _of_file(path, before)
        if signature(path) == before:
            return before, measured
    raise LorsError(f"{path} goes on changing while it is read; wait until it is complete, and start again")


def of_file(path: Path) -> str:
    """The digest of a file's bytes; errors as in `signed`."""
    return signed(path)[1]


@lru_cache(maxsize=4096)
def _of_file(path: Path, _: Signature) -> str:
    return of_bytes(path)


def of_bytes(path: Path) -> str:
    """The digest of a file's bytes, which are read for it each time."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def of_directory(directory: Path) -> str:
    """The digest of the model or adapter in `directory`: of the names and contents of the files in `CONTENT`."""
    return of_files(model_files.files(directory))


def of_files(files: dict[str, Path]) -> str:
    """The digest that a directory of these files, by name, has."""
    return of_value({name: of_file(files[name]) for name in files if counts(name)})


def counts(name: str) -> bool:
    """Whether a file of a directory is part of what the directory's digest is of."""
    return any(fnmatchcase(name, pattern) for pattern in CONTENT) and name != "lors.json"


def of_value(value: Any) -> str:
    """The digest of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
