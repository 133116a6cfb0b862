"""An input is what was read: the files that a stage reads stay what they were when it read them first.

Every reader of an input passes here. The digest of a file is taken when it is read first; whenever it is read again,
and when the stage has finished, its signature is looked at, and where that has changed, its bytes. What is read is read
between two equal signatures, so it is what was digested even if a file is replaced and put back. A file whose owner,
mode or times alone changed is the same file.
"""

import os
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

from lors_cli.artifacts import digest, model_files
from lors_cli.artifacts.digest import Signature
from lors_cli.errors import LorsError

T = TypeVar("T")
MANIFEST = "lors.json"
AGAIN = "nothing was published. Let the inputs be while a stage reads them, and start it again"


class InputChangedError(LorsError):
    """A file that is read has changed since it was read first, or has gone."""


@dataclass
class _File:
    signature: Signature
    digest: str


class Inputs:
    """The files that one stage reads, each as it was when it was read first."""

    def __init__(self) -> None:
        self._files: dict[Path, _File] = {}
        self._listings: dict[Hashable, tuple[str, Callable[[], list[str]], list[str]]] = {}

    def digest(self, path: Path) -> str:
        """The digest of a file, which it has to keep from now on.

        Raises:
            InputChangedError: it has another one, or is gone.

        """
        path = path.absolute()
        if path in self._files:
            self.signature(path)
        else:
            try:
                self._files[path] = _File(*digest.signed(path))
            except FileNotFoundError:
                raise _vanished(path) from None
        return self._files[path].digest

    def directory(self, path: Path) -> str:
        """The digest of a model or adapter directory, whose files it has to keep, and no more; errors as above."""
        files = model_files.files(path)
        if not files:
            raise _vanished(path)
        self.listing(
            path.absolute(), str(path), lambda: [name for name in model_files.files(path) if digest.counts(name)]
        )
        if MANIFEST in files:
            self.digest(files[MANIFEST])
        return digest.of_value({name: self.digest(file) for name, file in files.items() if digest.counts(name)})

    def listing(self, key: Hashable, place: str, names: Callable[[], list[str]]) -> None:
        """Have `place` keep the names in it that count, which `names` tells."""
        self._listings.setdefault(key, (place, names, names()))

    def signature(self, path: Path) -> Signature:
        """The signature of a file as it is now; one whose digest is known still has that content.

        Raises:
            InputChangedError: it does not, or is gone.

        """
        path = path.absolute()
        known = self._files.get(path)
        try:
            now = digest.signature(path)
            if known and now != known.signature:
                now, content = digest.signed(path)
                if content != known.digest:
                    raise InputChangedError(f"{path} has changed since this stage began to read it; {AGAIN}")
                known.signature = now
        except FileNotFoundError:
            raise _vanished(path) from None
        return now

    def check(self) -> None:
        """Check that all files still are what was read, and that there is none more that counts.

        Raises:
            InputChangedError: one is not, or is gone, or new.

        """
        for path in self._files:
            self.signature(path)
        for place, names, before in self._listings.values():
            if new := sorted(set(names()) - set(before)):
                raise InputChangedError(f"{place} has a new file, {new[0]}, since this stage began to read it; {AGAIN}")


_watching: list[tuple[Inputs, bool]] = []  # the innermost is the last; for all threads of the process


def _vanished(path: Path) -> InputChangedError:
    return InputChangedError(f"{path} is gone, or cannot be reached any more, while this stage reads it; {AGAIN}")


@contextmanager
def watched(read: Inputs, *, learns: bool = False) -> Iterator[None]:
    """Within it, what passes the functions below is compared with `read`; if it `learns`, what is new is added."""
    _watching.append((read, learns))
    try:
        yield
    finally:
        _watching.remove((read, learns))


def of_file(path: Path) -> str:
    """The digest of a file that a stage reads and that may not change from now on; errors as in `Inputs.digest`."""
    return _watching[-1][0].digest(path) if _watching else digest.of_file(path)


def of_directory(path: Path) -> str:
    """The digest of a directory that a stage reads; errors as in `Inputs.directory`."""
    return _watching[-1][0].directory(path) if _watching else digest.of_directory(path)


def listed(place: str, names: Callable[[], list[str]]) -> None:
    """Have `place` keep the names in it that count, as `Inputs.listing` does."""
    if _watching:
        _watching[-1][0].listing(place, place, names)


def vouch(path: Path) -> Signature:
    """The signature of a file that is read; errors as in `Inputs.signature`."""
    return (_watching[-1][0] if _watching else Inputs()).signature(path)


def check() -> None:
    """Check what was read so far; errors as in `Inputs.check`."""
    if _watching:
        _watching[-1][0].check()


def steadily(files: Iterable[Path], read: Callable[[], T], *, learns: bool = True) -> T:
    """What `read` returns, which reads the `files`; it reads again where one of them was changed meanwhile.

    Args:
        files: they may be inputs of a stage or not.
        read: reads them; if they are inputs, before any is changed for good.
        learns: whether they are to be remembered where all that is read is, because they are small.

    Raises:
        InputChangedError: a file is not what it was when its digest was taken, or goes on changing.

    """
    paths = list(files)
    for path in paths if learns and _watching and _watching[-1][1] else ():
        of_file(path)
    for _ in range(digest.ATTEMPTS):
        before, way = [vouch(path) for path in paths], _way(paths)
        made = read()
        after, moved = [vouch(path) for path in paths], _moved(way, _way(paths))
        if before == after and not moved:
            return made
    changing = next((path for path, one, other in zip(paths, before, after, strict=True) if one != other), moved)
    raise InputChangedError(f"{changing} goes on changing while it is read; {AGAIN}")


def _way(paths: list[Path]) -> dict[Path, os.stat_result]:
    """The directories and links by which files are reached, which might be switched to others and back."""
    folders = {path.absolute().parent for path in paths}
    reached = {*folders, *(Path(os.path.realpath(path)).parent for path in paths)}
    return {part: os.lstat(part) for folder in reached for part in [folder, *folder.parents]}


def _moved(before: dict[Path, os.stat_result], after: dict[Path, os.stat_result]) -> Path | None:
    """The first directory or link that is another one, or was renamed, which changes its status and not its content."""
    for path in before.keys() | after.keys():
        if path not in before or path not in after:
            return path
        old, new = before[path], after[path]
        renamed = old.st_ctime_ns != new.st_ctime_ns and old.st_mtime_ns == new.st_mtime_ns
        if renamed or (old.st_dev, old.st_ino) != (new.st_dev, new.st_ino):
            return path
    return None


def reads_model(*, weights: bool) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Makes a function that reads a model's directory, or all but its `weights`, read it `steadily`."""

    def steady(function: Callable[..., T]) -> Callable[..., T]:
        @wraps(function)
        def read(directory: Path, *args: Any, **kwargs: Any) -> T:
            files = model_files.files(directory).items()
            counting = [path for name, path in files if digest.counts(name)]
            small = [path for path in counting if path.suffix != ".safetensors"]
            asked = counting if weights else small
            return steadily(asked, lambda: function(directory, *args, **kwargs), learns=not weights)

        return read

    return steady
