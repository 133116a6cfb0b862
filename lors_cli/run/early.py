"""What can be said of a request at once, before torch and the libraries behind it are imported: that takes seconds.

Whether the files and directories that the config names exist, and whether there can be an output directory.
"""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lors_cli.config.fields import Dataset, named_datasets
from lors_cli.config.schema import Config
from lors_cli.data import local
from lors_cli.errors import close, request_error, together
from lors_cli.run import layout, places
from lors_cli.run.layout import STAGES


def check(config: Config, stages: Sequence[str], *, force: bool = False) -> None:
    """Check what the `stages` of a config read. Where they all are done nothing is written, unless by `force`.

    Raises:
        RequestError: with everything that does not exist.

    """
    models = [named for stage in stages for named in layout.named(config, stages, stage)]
    directory = Path(config.output_dir)
    outputs = [] if force else [STAGES[stage].output(directory) for stage in stages]
    checks: list[Callable[[], Any]] = [partial(places.check_output, directory, outputs)]
    checks += [partial(places.check_apart, directory, *named) for named in models]
    for stage in stages:
        section = getattr(config, stage)
        for key, dataset in named_datasets(section, stage) if section else ():
            checks.append(partial(_check_data, key, dataset))
        checks += [partial(_check_place, *named) for named in layout.named(config, stages, stage)]
        if config.prune and config.prune.mask and stage == "prune":
            checks.append(partial(_check_place, "prune.mask", config.prune.mask))
    together(lambda check: check(), checks)


def _check_data(key: str, dataset: Dataset) -> None:
    if not local.is_glob(dataset.path):
        places.exists(key, Path(dataset.path).expanduser())
    dataset.source(key).read()  # which reads nothing yet


def _check_place(key: str, text: str) -> None:
    path = Path(text).expanduser()
    if places.exists(key, path):
        return
    names = [] if "/" in text else ["dense", *STAGES["eval"].reads] if key == "eval.models" else []
    if likely := close(text, names):
        expected = f"{', '.join(names)}, or another model"
        raise request_error(key, expected, repr(text), f"did you mean {likely!r}?")
    if text.startswith(("/", ".", "~")) or path.suffix == ".gguf" or key.endswith((*layout.ADAPTERS, ".mask")):
        raise request_error(key, "a path that exists", f"{path}, which does not exist", _remedy(path))


def _remedy(path: Path) -> str:
    """A name beside it that is spelt alike, of the first part of the path that does not exist."""
    missing = next(part for part in [*reversed(path.parents), path] if not os.path.exists(part))
    try:
        likely = close(missing.name, os.listdir(missing.parent))
    except OSError:
        likely = None
    if likely is None:
        return "correct the path"
    beside = missing.parent / likely
    whole = beside / path.relative_to(missing)
    return f"correct the path: did you mean {whole if os.path.exists(whole) else beside}?"
