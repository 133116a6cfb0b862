"""What stands where a request reads or writes. Nothing is opened: a pipe would wait for somebody at its other end."""

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from lors_cli.errors import RequestError, request_error
from lors_cli.run import manifest

ROOM = 512  # bytes of a path that the names below the output directory may take
LONGEST = 4096 - ROOM  # of Linux; other systems say so themselves


def exists(key: str, path: Path) -> bool:
    """Whether there is something at `path`, which `key` names.

    Raises:
        RequestError: it cannot be reached, or it or an entry of it is a pipe, a socket or a device.

    """
    try:
        mode = path.stat().st_mode
        entries = [path / name for name in os.listdir(path)] if stat.S_ISDIR(mode) else []
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        got = f"{_short(path)}: {error.strerror}"
        raise request_error(key, "a path that can be read", got, "correct the path, or its permissions") from None
    for place in (path, *entries):
        if _is_special(place):
            remedy = "store what it gives in a file, and name that; or move it away"
            raise request_error(key, "files and folders", f"{place}, a pipe, a socket or a device", remedy)
    return True


def check_output(directory: Path, outputs: Sequence[Path]) -> None:
    """Check that the output directory is one, or can be made; it is not written to if the `outputs` are all there.

    Raises:
        RequestError: it is not, or lies in a directory that a stage has published.

    """
    whole = directory.absolute()
    there = Path(whole.anchor)
    for part in [*reversed(whole.parents), whole]:
        try:
            mode = part.stat().st_mode
        except FileNotFoundError:
            if part.is_symlink():
                raise _no_output(f"{part}, a link to {os.readlink(part)}, which does not exist") from None
            break
        except OSError as error:  # a name that is too long, links in a circle, a folder of somebody else
            raise _no_output(f"{_short(part)}: {error.strerror}") from None
        if not stat.S_ISDIR(mode):
            raise _no_output(f"{part}, {'a file' if stat.S_ISREG(mode) else 'a pipe, a socket or a device'}")
        if (part / manifest.NAME).is_file():
            expected = "a directory outside of what lors has published, which is replaced as a whole"
            raise request_error("output_dir", expected, f"{whole}, in {part}", "set another output_dir")
        there = part
    longest = os.pathconf(there, "PC_NAME_MAX")
    if len(os.fsencode(whole)) > LONGEST or any(len(os.fsencode(name)) > longest for name in whole.parts):
        expected = f"a path of at most {LONGEST} bytes, each name in it of at most {longest}"
        raise request_error("output_dir", expected, _short(whole), "set a shorter output_dir")
    finished = outputs and all(
        (output / manifest.NAME).is_file() for output in outputs
    )  # which a read-only place may hold
    if not finished and not os.access(there, os.W_OK | os.X_OK):
        got = f"{there}, which cannot be written to"
        raise request_error("output_dir", "a directory that can be written to", got, "set another output_dir")
    for name in (".lock", "lors.log"):
        if os.path.lexists(whole / name) and not os.path.isfile(whole / name):
            raise _no_output(f"{whole / name}, which is no file", f"a directory where {name} is absent, or a file")


def check_apart(directory: Path, key: str, text: str) -> None:
    """Check that the output directory is not in the model or the adapter `text`, which `key` names.

    Raises:
        RequestError: it is.

    """
    source, output = Path(os.path.realpath(Path(text).expanduser())), Path(os.path.realpath(directory))
    if os.path.isfile(source / "config.json") and output.is_relative_to(source):
        expected = f"a directory outside of {key}, which stays as it is"
        raise request_error("output_dir", expected, f"{output}, in {source}", "set another output_dir")


def check_replaceable(place: Path) -> None:
    """Check that a rename can give a directory the name `place`, and take it from the one that has it.

    Raises:
        RequestError: a link, a file or a mounted file system is there.

    """
    if place.is_symlink() or (os.path.lexists(place) and not place.is_dir()) or os.path.ismount(place):
        kind = (
            "a link" if place.is_symlink() else "where a file system is mounted" if place.is_dir() else "no directory"
        )
        remedy = "move it away (a link or a mount is fine for output_dir itself), or set another output_dir"
        raise request_error("output_dir", f"{place} to be absent, or a plain directory", f"{place}, {kind}", remedy)


def _is_special(place: Path) -> bool:
    try:
        mode = place.stat().st_mode
    except OSError:  # a dangling link, which whoever needs it reports
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _no_output(got: str, expected: str = "a directory") -> RequestError:
    return request_error("output_dir", expected, got, "set another output_dir")


def _short(path: Path) -> str:
    text = str(path)
    return text if len(text) < 300 else f"{text[:100]}...{text[-100:]}, of {len(os.fsencode(text))} bytes"
