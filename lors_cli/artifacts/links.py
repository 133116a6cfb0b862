"""Links and special files: a directory of somebody else must not bring in what lies outside it.

What a link leads to would be read, copied and pushed as part of the directory. A hub cache is the one layout whose
files are links by design; each leads to a blob of the same repository.
"""

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from lors_cli.errors import LorsError

SNAPSHOTS, BLOBS = "snapshots", "blobs"


class FilesError(LorsError):
    """Files that cannot be used; what is found and the remedy apart."""

    def __init__(self, path: Path, reason: str, remedy: str) -> None:
        self.got, self.remedy = f"{path} {reason}", remedy
        super().__init__(f"{self.got}; {remedy}")


def check(directory: Path, paths: Iterable[Path]) -> None:
    """Refuse each of `paths`, found in `directory`, that is neither a file nor a folder of it.

    The directory itself may be reached by a link.

    Raises:
        FilesError: a link that leads out of the directory, or to nothing; a pipe, a socket or a device.

    """
    home = os.path.realpath(directory)
    allowed = (home, *_blobs(home))
    for path in paths:
        real = os.path.realpath(path)
        if not any(real.startswith(place + os.sep) for place in allowed):
            remedy = "put a copy of the file there in place of the link, or remove the link"
            raise FilesError(path, f"is a link that leads out of {directory}", remedy)
        if not os.path.exists(real):
            raise FilesError(path, "is a link to nothing", "copy the file again from its source, or remove it")
        mode = os.stat(real).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise FilesError(
                path, "is neither a file nor a folder", "remove it: a pipe or a device is read as no model"
            )


def _blobs(home: str) -> list[str]:
    """The folder to which the links of the hub cache's snapshot `home` lead; nothing of other directories."""
    parent, revision = os.path.split(home)
    repository, snapshots = os.path.split(parent)
    is_snapshot = bool(revision) and snapshots == SNAPSHOTS and "--" in os.path.basename(repository)
    return [os.path.join(repository, BLOBS)] if is_snapshot else []  # as it is: it may be a link itself
