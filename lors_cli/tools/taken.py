"""What a config names on this machine, and how that gets into a bundle."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from lors_cli.artifacts import model_files
from lors_cli.config import load as loading
from lors_cli.config.fields import named_datasets
from lors_cli.config.schema import Config
from lors_cli.data import local as local_files
from lors_cli.data.sources import Source
from lors_cli.errors import Problem
from lors_cli.models import source
from lors_cli.run.layout import EVALUATED, STAGES

OTHERS = ("prune.mask", "eval.task_dir", "eval.data_dir")  # what a config names beside models, adapters and data sets


@dataclass(frozen=True)
class Named:
    """Something on this machine that is taken along.

    Attributes:
        key: what names it, for messages.
        origin: what the key has: a path, or a model that comes with lors.
        parts: its files by the names that they keep; None of a file or a folder that is taken whole.

    """

    key: str
    origin: str
    parts: dict[str, Path] | None


def local(config: Config) -> Iterator[Named]:
    """What the config names on this machine, by the dotted keys that override it.

    Raises:
        RequestError: a data set is not there.

    """
    for key, value in models(config):
        if value == source.BUILT_IN and not Path(value).exists():
            path = source.resolve(value, key)
            yield Named(key, value, {f"{value}/{name}": file for name, file in model_files.files(path).items()})
        elif Path(value).expanduser().exists():
            yield Named(key, value, None)
    for key in OTHERS:
        section, _, field = key.partition(".")
        if named := getattr(getattr(config, section), field, None):
            yield Named(key, named, None)
    for name, dataset in named_datasets(config):
        yield from local_rows(f"{loading.overridden(name)}.path", dataset.source(name))


def local_rows(key: str, rows: Source) -> Iterator[Named]:
    """A data set that is on this machine.

    Raises:
        RequestError: it is a glob that no file fits.

    """
    if local_files.is_local(rows.path) and not rows.is_hub:
        yield Named(key, rows.path, _matched(rows) if local_files.is_glob(rows.path) else None)


def models(config: Config) -> Iterator[tuple[str, str]]:
    """The keys that name models and adapters, and the names."""
    keys = dict.fromkeys(key for stage in STAGES.values() for names in stage.reads.values() for key in names)
    for key in ("model", *(key for key in keys if "." in key)):
        value: Any = config
        for part in key.split("."):
            value = getattr(value, part, None)
        if value and not (key.endswith(".teacher") and value == "dense"):  # a folder may be called so
            yield key, cast("str", value)
    for number, name in enumerate(config.eval.models if config.eval else []):
        if name != "dense" and name not in EVALUATED:
            yield f"eval.models.{number}", name


def missing(named: list[Named]) -> Iterator[Problem]:
    """What is wrong with those that are not there."""
    for one in named:
        if one.parts is None and not Path(one.origin).expanduser().exists():
            got = f"{one.origin}, which does not exist"
            yield Problem(one.key, "an existing file or folder", got, local_files.hint(one.origin))


def _matched(rows: Source) -> dict[str, Path]:
    """The files of a glob by their names below the folder at which it begins."""
    root = _fixed(rows.path)
    return {path.relative_to(root).as_posix(): path for path in local_files.files(rows)}


def _fixed(pattern: str) -> Path:
    """The folder of a glob, as far as it has no signs of one."""
    parts = Path(pattern).expanduser().parts
    return Path(*parts[: next(number for number, part in enumerate(parts) if local_files.is_glob(part))])


def copy(origin: str, parts: dict[str, Path] | None, place: Path) -> str:
    """Copy a file, a folder, or `parts` into the folder `place`; what names it there."""
    path = Path(origin).expanduser()
    if parts is None:
        kept = Path(os.path.abspath(path)).name  # "." has one too
        place.mkdir(parents=True)
        take = shutil.copytree if path.is_dir() else shutil.copyfile
        take(path, place / kept)
        return kept
    for name, file in parts.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place / name)
    return path.relative_to(_fixed(origin)).as_posix() if local_files.is_glob(origin) else origin
