"""Data sets of the hub, through its library: over the network, or from what was fetched before."""

import glob
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lors_cli import offline
from lors_cli.data import builtin
from lors_cli.errors import request_error


@dataclass(frozen=True)
class Address:
    """Where rows are. `key` is the config's path to it, for error messages."""

    path: str
    key: str
    split: str | None = None
    name: str | None = None
    revision: str | None = None
    data_files: str | None = None
    limit: int | None = None


def load(source: Address, *, streaming: bool) -> Any:
    """The data set of `source` as the library gives it; with `streaming`, one that is read row by row.

    Raises:
        RequestError: it is neither cached nor on a hub that answers.

    """
    import datasets
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

    if source.path in _PACKAGED_DATASETS_MODULES:  # the rows would count by the name of a file, not by its content
        remedy = f"name the file itself: {source.key}: {source.data_files or 'FILE'}"
        raise request_error(source.key, "a data set", f"{source.path!r}, a loader of files", remedy)
    with errors(source):
        path, revision = source.path, source.revision
        # From its own cache the library has only whole data sets; files of one are found in the hub's.
        cached = offline.is_on() and not source.data_files
        if source.data_files and (offline.is_on() or not streaming):
            path, revision = _snapshot(source, source.data_files), None
        data_set = datasets.load_dataset(
            path,
            source.name,
            split=source.split or "train",
            revision=revision,
            data_files=source.data_files,
            streaming=streaming and not cached,
        )
        return data_set.to_iterable_dataset() if streaming and cached else data_set


def rows(source: Address) -> Iterator[dict[str, Any]]:
    """The rows of `source`; errors as of `load`."""
    # streamed, a limit does not download all of a large set; otherwise it is cached for nodes without a network
    streaming = source.limit is not None and source.data_files is None and not offline.is_on()
    data_set = load(source, streaming=streaming)
    with errors(source):
        yield from data_set


@contextmanager
def errors(source: Address) -> Iterator[None]:
    """Whatever goes wrong within becomes a RequestError about the hub."""
    from huggingface_hub.errors import HFValidationError

    try:
        yield
    except Exception as error:  # offline, not found, gated, network: the library raises many types
        lines = (str(error).strip() or type(error).__name__).splitlines()
        if isinstance(error, ValueError) and not isinstance(error, HFValidationError) and not offline.is_on():
            # found, but it has no such configuration or split: the second line lists those that it has
            expected, remedy = "a configuration and a split that the data set has", "correct name or split"
            got = f"{source.path}: {' '.join(lines[:2])}"
            raise request_error(
                source.key, expected, got, f"{remedy}: {source.key}: {{path: ..., name: ...}}"
            ) from None
        reason = lines[0]
        raise request_error(
            source.key,
            f"a local file, a built-in data set ({', '.join(builtin.NAMES)}), or a hub id (owner/name)",
            f"{source.path!r}, which is not a local file and could not be fetched from the hub: {reason}",
            "correct the path; without a network, fetch it on a machine that has one (lors eval CONFIG --prefetch)"
            " with the same HF_HOME, or give a local file",
        ) from None


def _snapshot(source: Address, files: str) -> str:
    """The folder of the hub's cache with those files of a data set, fetched if a network is there and they are not."""
    from huggingface_hub import hf_hub_download, snapshot_download

    options: dict[str, Any] = {"repo_type": "dataset", "revision": source.revision}
    if glob.has_magic(files):
        return str(snapshot_download(source.path, allow_patterns=files, **options))
    return str(Path(hf_hub_download(source.path, files, **options)).parents[files.count("/")])
