"""Temporary directories that do not stay for good when the process is killed: the next one sweeps them.

Each is locked as long as its process lives, so one without a lock belongs to nobody.
"""

import fcntl
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from lors_cli.artifacts import publish

NAME = re.compile(r"\.lors-[a-z]+-[a-z0-9_]{8}")  # as `mkdtemp` ends it


@contextmanager
def directory(purpose: str) -> Iterator[Path]:
    """A new directory among the system's temporary ones, which is removed in the end.

    Args:
        purpose: a word for its name.

    Raises:
        OSError: it cannot be made.

    """
    _sweep(tempfile.gettempdir())
    while True:
        path = Path(tempfile.mkdtemp(prefix=f".lors-{purpose}-"))
        try:
            lock = _locked(path)
        except BaseException:
            publish.remove(path)
            raise
        if lock is not None:
            break
    try:
        yield path
    finally:
        publish.remove(path)
        os.close(lock)


@lru_cache
def _sweep(place: str) -> None:
    """Remove the directories of killed processes; once for each process, since a place can have many files."""
    found = [path for path in Path(place).glob(".lors-*") if NAME.fullmatch(path.name)]
    for path in (path for path in found if path.is_dir() and not path.is_symlink()):
        with suppress(OSError):
            if (lock := _locked(path)) is not None:
                publish.remove(path)
                os.close(lock)


def _locked(path: Path) -> int | None:
    """A descriptor that holds the lock on the directory; None if another process has it, or swept the directory.

    Raises:
        OSError: the directory cannot be opened.

    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), os.stat(path)):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None
