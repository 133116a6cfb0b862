"""Directories that appear whole or not at all: written aside under a hidden name, flushed to disk, then renamed."""

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lors_cli.errors import LorsError, RequestError, request_error

WORK = "work"
# All that is ever in `work/`; an older version's may lie in a published directory, and only that is removed there.
WORK_CONTENT = {"request.json", "progress.json", "checkpoints", "adapter", "states-0", "states-1"}
MODES = ".mode-"


def partial_directory(final: Path) -> Path:
    """Where `final` is prepared: beside it, so that the rename stays within one file system."""
    return _beside(final, "partial")


def _beside(final: Path, state: str) -> Path:
    return final.with_name(f".{final.name}.{state}")


def scratch(partial: Path) -> Path:
    """The folder of what an interrupted run needs to go on; it is moved out before publishing."""
    directory = partial / WORK
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def publish(partial: Path, final: Path) -> None:
    """Give the finished `partial` its final name. What `final` held before is removed only after the swap.

    All in it gets the mode that the umask gives, whatever the libraries that wrote it make of it. After a kill `settle`
    finds out how far this came.
    """
    scratched = partial / WORK
    # of an interrupted run that this one continued
    for left in [*partial.rglob(f"{MODES}*"), *partial.rglob(".*.new")]:
        remove(left)
    folder, file = _modes(partial)
    for path in [*partial.rglob("*"), partial]:
        if path != scratched and scratched not in path.parents:
            _set_mode(path, folder if path.is_dir() else file)
            flush(path)
    work, replaced = _beside(final, WORK), _beside(final, "replaced")
    remove(work)
    if scratched.exists():
        scratched.rename(work)
    if final.exists():
        remove(replaced)
        final.rename(replaced)
    partial.rename(final)
    flush(final.parent)
    # only now: until the new name is there, it is what an interrupted run would go on from
    remove(work)
    remove(replaced)


def settle(final: Path) -> None:
    """Finish or undo what a killed `publish` left beside `final`; the lock on its directory must be held."""
    partial, work, replaced = (_beside(final, state) for state in ("partial", WORK, "replaced"))
    if replaced.exists() and not final.exists():
        replaced.rename(final)
    remove(replaced)
    if partial.is_dir() and not (partial / WORK).exists() and work.exists():
        work.rename(partial / WORK)
    remove(work)
    if _old_work(final):
        remove(final / WORK)


def unsettled(final: Path) -> bool:
    """Whether there is anything for `settle` to do."""
    return _beside(final, WORK).exists() or _beside(final, "replaced").exists() or _old_work(final)


def _old_work(final: Path) -> bool:
    """Whether `final` has a ``work/`` that a version of lors left there, and not somebody else's folder."""
    try:
        return (final / "lors.json").is_file() and {*os.listdir(final / WORK)} <= WORK_CONTENT
    except OSError:
        return False


def remove(path: Path) -> None:
    """Remove a file or a directory as far as possible."""
    if not os.path.lexists(path):
        return
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


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
    folder = Path(tempfile.mkdtemp(dir=beside, prefix=MODES))
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
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        os.close(descriptor)


@contextmanager
def exclusive(directory: Path, *, wait: bool = False, reading: bool = False) -> Iterator[RequestError | None]:
    """Hold `directory` for this process; the lock goes away with the process, however it ends.

    Yields:
        for `reading` alone, the error where nothing can be written, and where nobody else can write either.

    Raises:
        RequestError: the directory cannot be made or written to, and not `reading`.
        LorsError: another process holds it, and not `wait`.

    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = (directory / ".lock").open("a")
    except OSError as error:
        unwritable = request_error("output_dir", "a directory that can be written to", error, "set another one")
        if not reading:
            raise unwritable from None
        yield unwritable
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise LorsError(f"another lors process is working in {directory}; wait for it or stop it") from None
        except OSError:
            pass  # a file system without locks: work goes on unprotected
        yield None
