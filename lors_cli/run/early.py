"""What can be said of a request at once, before torch and the libraries behind it are imported: that takes seconds.

Whether the files and directories that the config names exist, and whether there can be an output directory.
"""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lors_cli.config.fields import named_datasets
from lors_cli.config.schema import Config
from lors_cli.errors import close, request_error, together
from lors_cli.run import layout
from lors_cli.run.layout import STAGES


def check(config: Config, stages: Sequence[str]) -> None:
    """Check what the `stages` of a config read.

    Raises:
        RequestError: with everything that does not exist.

    """
    checks: list[Callable[[], Any]] = [partial(_check_output, Path(config.output_dir))]
    for stage in stages:
        section = getattr(config, stage)
        for key, dataset in named_datasets(section, stage) if section else ():
            checks.append(dataset.source(key).read)  # which reads nothing yet
        checks += [partial(_check_place, *named) for named in layout.named(config, stages, stage)]
        if config.prune and config.prune.mask and stage == "prune":
            checks.append(partial(_check_place, "prune.mask", config.prune.mask))
    together(lambda check: check(), checks)


def _check_place(key: str, text: str) -> None:
    path = Path(text).expanduser()
    if path.exists():
        return
    names = [] if "/" in text else ["dense", *STAGES["eval"].reads] if key == "eval.models" else []
    if likely := close(text, names):
        expected = f"{', '.join(names)}, or another model"
        raise request_error(key, expected, repr(text), f"did you mean {likely!r}?")
    if text.startswith(("/", ".", "~")) or path.suffix == ".gguf" or key.endswith((".adapter", ".mask")):
        raise request_error(key, "a path that exists", f"{path}, which does not exist", _remedy(path))


def _remedy(path: Path) -> str:
    """A name beside it that is spelt alike, of the first part of the path that does not exist."""
    missing = next(part for part in [*reversed(path.parents), path] if not part.exists())
    try:
        likely = close(missing.name, os.listdir(missing.parent))
    except OSError:
        likely = None
    if likely is None:
        return "correct the path"
    beside = missing.parent / likely
    whole = beside / path.relative_to(missing)
    return f"correct the path: did you mean {whole if whole.exists() else beside}?"


def _check_output(directory: Path) -> None:
    """Check the first part of the path that exists."""
    there = next(part for part in [directory, *directory.absolute().parents] if part.exists())
    if not there.is_dir():
        raise request_error("output_dir", "a directory", f"{there}, a file", "set another output_dir")
    if not os.access(there, os.W_OK | os.X_OK):
        got = f"{there}, which cannot be written to"
        raise request_error("output_dir", "a directory that can be written to", got, "set another output_dir")
