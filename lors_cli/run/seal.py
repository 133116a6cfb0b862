"""What vouches for a published directory: the digests of its files in its manifest, and the manifest's own.

The latter is the manifest's seal. Neither keeps out somebody who means to deceive, who can make both anew.
"""

import hashlib
import logging
from functools import lru_cache
from pathlib import Path

from lors_cli.artifacts import digest, model_files
from lors_cli.artifacts.files import CARD, write_json
from lors_cli.errors import LorsError
from lors_cli.run.manifest import AS_IT_IS, NAME, Manifest

log = logging.getLogger(__name__)

SCRATCH = "work"  # the folder of what an interrupted run needs


def write(directory: Path, made: Manifest) -> None:
    """Write the manifest of a directory that is otherwise complete.

    Raises:
        LorsError: the write failed.

    """
    write_json(directory / NAME, sealed(made, published(directory)).content)


def published(directory: Path) -> dict[str, Path]:
    """The files of a finished directory by their names, apart from its manifest and what an interrupted run needs."""
    named = {path.relative_to(directory): path for path in sorted(directory.rglob("*")) if path.is_file()}
    return {name.as_posix(): path for name, path in named.items() if name.parts[0] not in (NAME, SCRATCH)}


def sealed(made: Manifest, files: dict[str, Path]) -> Manifest:
    """A manifest with the digests of the files that are published with it, and with its own."""
    digests = {name: digest.of_file(path) for name, path in files.items()}
    complete = made.model_copy(update={"files": digests, "seal": None})
    content = {key: value for key, value in complete.content.items() if key != "seal"}
    return complete.model_copy(update={"seal": digest.of_value(content)})


def verify(directory: Path, made: Manifest, measured: str | None = None, *, weights: bool = True) -> None:
    """Check that `directory` is as it was published; arguments as of `damage`.

    Raises:
        LorsError: it is not.

    """
    if found := damage(directory, made, measured, weights=weights):
        remedy = f"Make it again with --force, or {AS_IT_IS.format(directory / NAME)}"
        raise LorsError(f"{directory} is not what its {NAME} recorded: {found}. {remedy}")


def damage(directory: Path, made: Manifest, measured: str | None = None, *, weights: bool = True) -> str | None:
    """What in `directory` is not as its manifest says it was published; None if everything is. A card may be edited.

    Args:
        directory: it.
        made: its manifest.
        measured: the directory's digest, where it is known already.
        weights: whether files of weights are read too, which takes as long as loading them.

    """
    there = published(directory)
    for name, known in (made.files or {}).items():
        if name not in there and name != CARD:
            return f"{name} is missing"
        if name != CARD and (weights or not _is_weights(name)) and digest.of_file(there[name]) != known:
            return f"{name} was damaged or edited"
    if made.files is not None:
        folders = {name.partition("/")[0] for name in made.files if "/" in name}
        counting = [name for name in model_files.files(directory) if digest.counts(name)]
        counting += [name for name in there if name.partition("/")[0] in folders]
        if new := [name for name in counting if name not in made.files]:
            return f"{new[0]} is new"
    if weights and (measured or digest.of_directory(directory)) != made.digest:
        return "its digest differs, so a file was edited or damaged"
    if made.files is None:
        _say_unsealed(made.versions.get("lors_cli", "?"))
    return None


def _is_weights(name: str) -> bool:
    return name.endswith(".safetensors")


@lru_cache(maxsize=8)
def _say_unsealed(version: str) -> None:
    told = "its manifests have no seal, so edits of them, and of cards and items, are not noticed"
    log.info("made by lors %s: %s; --force makes a directory again", version, told)


def content_of(directory: Path, made: Manifest, name: str) -> bytes:
    """The content of a file as it was published.

    Raises:
        LorsError: the file was edited or damaged, or is not one that was published.
        OSError: it cannot be read.

    """
    content = (directory / name).read_bytes()
    if made.files is not None and made.files.get(name) != hashlib.sha256(content).hexdigest():
        raise LorsError(f"{directory / name} is not what lors wrote: it was edited or damaged; --force makes it again")
    return content
