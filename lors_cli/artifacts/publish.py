"""Directories that appear whole or not at all: written aside under a hidden name, flushed to disk, then renamed."""

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lors_cli.errors import LorsError, request_error


def partial_directory(final: Path) -> Path:
    """Where `final` is prepared: beside it, so that the rename stays within one file system."""
    return final.with_name(f".{final.name}.partial")


def scratch(partial: Path) -> Path:
    """The folder of what an interrupted run needs to go on; it is removed before publishing."""
    directory = partial / "work"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def publish(partial: Path, final: Path) -> None:
    """Give the finished `partial` its final name. What `final` held before is removed only after the swap.

    All in it gets the mode that the umask gives, whatever the libraries that wrote it make of it.
    """
    scratched = partial / "work"
    folder, file = _modes(partial)
    for path in [*partial.rglob("*"), partial]:
        if path != scratched and scratched not in path.parents:
            _set_mode(path, folder if path.is_dir() else file)
            flush(path)
    replaced = final.with_name(f".{final.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if final.exists():
        final.rename(replaced)
    partial.rename(final)
    flush(final.parent)
    # only now: until the new name is there, it is what an interrupted run would go on from
    shutil.rmtree(final / "work", ignore_errors=True)
    shutil.rmtree(replaced, ignore_errors=True)


@contextmanager
def written_aside(final: Path) -> Iterator[Path]:
    """A new directory to fill, which becomes `final` when all went well and disappears otherwise."""
    partial = partial_directory(final)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        publish(partial, final)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def use_default_mode(file: Path) -> None:
    """Give a file that a library wrote for its owner alone the mode that the umask gives."""
    _set_mode(file, _modes(file.parent)[1])


def _set_mode(path: Path, mode: int) -> None:
    if stat.S_IMODE(path.stat().st_mode) != mode:  # where they are all the same, they may not be changed
        path.chmod(mode)


def _modes(beside: Path) -> tuple[int, int]:
    """The modes of a new folder and of a new file in the folder `beside`."""
    folder = Path(tempfile.mkdtemp(dir=beside, prefix=".mode-"))
    try:
        (folder / "folder").mkdir()
        (folder / "file").touch()
        modes = [stat.S_IMODE((folder / name).stat().st_mode) for name in ("folder", "file")]
        return modes[0], modes[1]
    finally:
        shutil.rmtree(folder)


def flush(path: Path) -> None:
    """Bring a file, or the names in a directory, to the disk itself."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def exclusive(directory: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold `directory` for this process; the lock goes away with the process, however it ends.

    Raises:
        RequestError: the directory cannot be made or written to.
        LorsError: another process holds it, and not `wait`.

    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = (directory / ".lock").open("a")
    except OSError as error:
        raise request_error("output_dir", "a directory that can be written to", error, "set another one") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise LorsError(f"another lors process is working in {directory}; wait for it or stop it") from None
        except OSError:
            pass  # a file system without locks: work goes on unprotected
        yield
