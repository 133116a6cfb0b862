"""Locks on the directories that stages have published: those who read one share it, who replaces one has it alone.

They lie on the directories themselves, so nothing is written for them, and one that is read can be on a disk that can
only be read. They go away with the process, however it ends.
"""

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from lors_cli.errors import LorsError


@contextmanager
def reading(directories: Iterable[Path]) -> Iterator[None]:
    """Share the directories with others that read them. One that cannot be locked is read without."""
    with ExitStack() as held:
        for directory in directories:
            with suppress(OSError):
                held.enter_context(_locked(directory, fcntl.LOCK_SH))
        yield


@contextmanager
def replacing(directory: Path) -> Iterator[None]:
    """Have a directory alone, if it is there, in order to put another one in its place.

    Raises:
        LorsError: another process reads it.

    """
    with ExitStack() as held:
        try:
            held.enter_context(_locked(directory, fcntl.LOCK_EX))
        except BlockingIOError:
            got = f"another lors process is reading {directory}, so it cannot be replaced now"
            raise LorsError(f"{got}; wait for that process, stop it, or set another output_dir") from None
        except OSError:
            pass  # there is none, or the file system has no locks
        yield


@contextmanager
def _locked(directory: Path, kind: int) -> Iterator[None]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
