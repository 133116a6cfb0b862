"""What an interrupted run goes on from carries its own SHA-256, written with it and verified before it is used.

A directory is sealed by ``digests.json``, written last: the digests of all its files. A JSON file is sealed by one of
its content, inside. Either names its owner, the run that it belongs to, and a directory its own name, so that a renamed
checkpoint, or one of another run, is noticed like a flipped bit. Seals tell of damage and mistakes; they do not keep
out anybody who makes them anew.
"""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from lors_cli.artifacts import digest, files
from lors_cli.errors import LorsError

log = logging.getLogger(__name__)

DIGESTS = "digests.json"
REQUEST = "request.json"  # among what an interrupted run left: what it was making, and whether by force
UNSEALED = "it carries no digest, as those of older versions of lors, so nothing tells whether it is whole"
DAMAGED = ".damaged"  # ends the name under which it is kept


class DamagedError(LorsError):
    """A file is not as it was written; the message is the reason alone, for a sentence about the file."""


def owner(scratch: Path) -> str:
    """The owner of what an interrupted run has left in `scratch`: the digest of its request; "" where it has none.

    Raises:
        DamagedError: the request is damaged.

    """
    path = scratch / REQUEST
    return digest.of_value(read_json(path)["request"]) if path.exists() else ""


def write_json(path: Path, value: Any, owner: str = "") -> None:
    """Write `value` as sealed JSON, whole or not at all; errors as in `files.write_json`."""
    content = {"owner": owner, "content": json.loads(json.dumps(value, allow_nan=False))}
    files.write_json(path, {"sha256": digest.of_value(content), **content})


def read_json(path: Path, owner: str = "") -> Any:
    """The value that `write_json` wrote for this owner.

    Raises:
        DamagedError: it is not there, or not as it was written, or for another owner.

    """
    try:
        read = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DamagedError("it is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedError(f"it cannot be read: {error}") from None
    if not isinstance(read, dict) or "sha256" not in read:
        raise DamagedError(UNSEALED)
    if read.pop("sha256") != digest.of_value(read) or read.keys() != {"owner", "content"}:
        raise DamagedError("its content is not what was written")
    if read["owner"] != owner:
        raise DamagedError("it was written for another run, or under another name")
    return read["content"]


def read_or_warn(path: Path, consequence: str, owner: str = "") -> Any:
    """The value that `write_json` wrote; None where there is no file, or a damaged one, which is said and put aside."""
    if not path.exists():
        return None
    try:
        return read_json(path, owner)
    except DamagedError as error:
        log.warning("%s cannot be used: %s. It is kept as %s; %s", path, error, put_aside(path).name, consequence)
        return None


def seal(directory: Path, owner: str, name: str) -> None:
    """Write the digests of all files of a directory that will have this name."""
    digests = {path.name: digest.of_bytes(path) for path in sorted(directory.iterdir())}
    write_json(directory / DIGESTS, digests, f"{owner}/{name}")


def damage(directory: Path, owner: str) -> str | None:
    """Why the sealed `directory` must not be used; None if it is as it was written."""
    path = directory / DIGESTS
    if not directory.is_dir():
        return "it is missing"
    if not path.exists():
        return UNSEALED
    try:
        digests = read_json(path, f"{owner}/{directory.name}")
        # files of the system, such as a Mac's, start with a dot
        found = {path.name for path in directory.iterdir() if not path.name.startswith(".")} - {DIGESTS}
        if added := found - digests.keys():
            return f"{min(added)} was not saved with it"
        for name, wanted in digests.items():
            if name not in found:
                return f"{name} is missing"
            if digest.of_bytes(directory / name) != wanted:
                return f"{name} does not have the bytes that were saved"
    except DamagedError as error:
        return f"{DIGESTS}: {error}"
    except OSError as error:
        return str(error)
    return None


def put_aside(path: Path) -> Path:
    """Rename what is damaged, so that it is not in the way; where it is kept."""
    kept = path.with_name(path.name + DAMAGED)
    if kept.is_dir() and not kept.is_symlink():
        shutil.rmtree(kept)
    else:
        kept.unlink(missing_ok=True)
    return path.rename(kept)
