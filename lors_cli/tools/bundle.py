"""``lors bundle``: all that a config needs, in one directory that a machine without a network runs from.

    config.yaml     the config with its overrides; what was a local path is a path in the bundle
    files/          the local models, data sets, masks and tasks that it names
    hub/            what came from the hub, as HF_HOME
    wheels/         lors and what it depends on, for pip install --no-index --find-links
    bundle.json     the keys of the paths, the command that made it, and the size and digest of every file

The parts of the hub stay in the unfinished directory if a bundle is interrupted, so that the same command goes on.
"""

import json
import logging
import os
import shlex
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import yaml

from lors_cli import __version__, console
from lors_cli.artifacts import digest, files, model_files, publish
from lors_cli.artifacts.files import write_json, write_text
from lors_cli.config import load as loading
from lors_cli.config.fields import named_datasets
from lors_cli.config.schema import Config
from lors_cli.data import local
from lors_cli.data.sources import Source
from lors_cli.errors import Problem, RequestError, request_error, together
from lors_cli.models import source
from lors_cli.run.layout import EVALUATED, STAGES
from lors_cli.tools import wheels
from lors_cli.tools.prefetch import prefetch

log = logging.getLogger(__name__)

NAME, CONFIG = "bundle.json", "config.yaml"
VERSION = 1
OTHERS = ("prune.mask", "eval.task_dir", "eval.data_dir")  # what a config names beside models, adapters and data sets


def make(path: Path, overrides: Sequence[str], directory: Path, *, with_wheels: bool, force: bool = False) -> None:
    """Collect what the config at `path` needs into `directory`.

    The hub's libraries have to keep what they fetch in ``hub`` of the unfinished directory (`offline.use_home`).

    Raises:
        RequestError: `directory` is taken; or something that the config names is not there and could not be fetched:
            all of that is named.
        LorsError: pip could not fetch the wheels.

    """
    if directory.exists() and not (force and (directory / NAME).is_file()):
        remedy = "name another directory; --force replaces a bundle"
        raise request_error("DIR", "a directory that does not exist yet", f"{directory}, which does", remedy)
    config, raw = loading.load(path, overrides), loading.read(path)
    together(lambda text: loading.override(raw, text), overrides)
    partial, named = publish.partial_directory(directory), [*_local(config)]
    for key, origin, parts in named:
        if parts is None and partial.resolve().is_relative_to(Path(origin).expanduser().resolve()):
            expected = f"a directory outside of the folder that {key} names"
            raise request_error("DIR", expected, f"{directory} in {origin}", "name another directory")
    with publish.exclusive(directory.parent):
        for left in ("files", "wheels"):
            publish.remove(partial / left)
        (partial / "files").mkdir(parents=True, exist_ok=True)
        paths = {}
        for number, (key, origin, parts) in enumerate(named):
            place = partial / "files" / str(number)
            paths[key] = (Path("files") / str(number) / _copy(origin, parts, place)).as_posix()
            loading.override(raw, f"{key}={json.dumps(paths[key])}")
            log.info("bundle: %s: %s", key, origin)
        for line in prefetch(config):
            if line.partition(":")[0] not in EVALUATED:  # what the stages make stays here: they run again there
                log.info("bundle: %s", line)
        if with_wheels:
            wheels.download(partial / "wheels")
        write_text(partial / CONFIG, yaml.safe_dump(raw, sort_keys=False, allow_unicode=True))
        command = shlex.join(
            ["lors", "bundle", str(path), str(directory), *overrides, *["--no-wheels"] * (not with_wheels)]
        )
        listed = _listed(partial)
        write_json(
            partial / NAME,
            {"version": VERSION, "lors": __version__, "command": command, "paths": paths, "files": listed},
        )
        publish.publish(partial, directory)
    total = sum(one["bytes"] for one in listed.values())
    log.info("bundle: %.3f GB; on the other machine: lors run --bundle %s", total / 1e9, directory)
    console.result(str(directory))


def config(directory: Path, overrides: Sequence[str]) -> Config:
    """The config of a bundle, whose files are all as they were, with `overrides`.

    Raises:
        RequestError: it is no bundle, or files are missing or changed: all are named, with the command that makes it.

    """
    facts = _facts(directory)
    remedy = f"copy it again, or make it again where there is a network: {facts['command']} --force"
    if wrong := [Problem(name, "the file as it was bundled", got, remedy) for name, got in _wrong(directory, facts)]:
        raise RequestError(*wrong).in_file(str(directory))
    places = [f"{key}={json.dumps(str(directory.absolute() / path))}" for key, path in facts["paths"].items()]
    return loading.load(directory / CONFIG, [*places, *overrides])


def _facts(directory: Path) -> dict[str, Any]:
    """What a bundle says of itself.

    Raises:
        RequestError: it is no bundle, of another version, or its file does not have the form that `make` gives it.

    """
    again = "make it again where there is a network"
    try:
        facts = files.read_object(directory / NAME)
        if facts.get("version") == VERSION:
            texts = [facts["command"], *facts["paths"].values(), *(one["sha256"] for one in facts["files"].values())]
            sizes = [one["bytes"] for one in facts["files"].values()]
            if not all(isinstance(text, str) for text in texts) or not all(type(size) is int for size in sizes):
                raise ValueError("a value of another type")
            return facts
    except OSError:
        expected, remedy = f"a directory that `lors bundle` made, with {NAME}", "correct the path"
        raise request_error("--bundle", expected, str(directory), remedy) from None
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        got = f"a damaged file: {type(error).__name__}: {error}"
        remedy = f"copy it again, or {again}"
        raise request_error("--bundle", "what `lors bundle` wrote", got, remedy, directory / NAME) from None
    remedy = f"{again}: {facts.get('command', 'lors bundle')} --force"
    raise request_error("--bundle", f"version {VERSION}", repr(facts.get("version")), remedy, directory / NAME)


def _wrong(directory: Path, facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The files that are not as they were, and what is wrong with each."""
    with console.progress("bundle: file", len(facts["files"])) as advance:
        for name, known in facts["files"].items():
            file = directory / name
            if not file.is_file():
                yield name, "missing"
            elif file.stat().st_size != known["bytes"]:
                yield name, f"{file.stat().st_size} bytes instead of {known['bytes']}"
            elif digest.of_bytes(file) != known["sha256"]:
                yield name, "other content"
            advance(name)


def _listed(directory: Path) -> dict[str, dict[str, Any]]:
    """The size and the digest of every file in it that is more than a mark of the hub's libraries."""
    found = [
        path for path in sorted(directory.rglob("*")) if path.is_file() and path.suffix not in (".lock", ".metadata")
    ]
    return {
        path.relative_to(directory).as_posix(): {"bytes": path.stat().st_size, "sha256": digest.of_file(path.resolve())}
        for path in found
    }


def _local(config: Config) -> Iterator[tuple[str, str, dict[str, Path] | None]]:
    """What the config names on this machine: the key, its value, and the files by the names that they keep.

    Of files and folders that are taken whole it gives no list.

    Raises:
        RequestError: a data set is not there.

    """
    for key, value in _models(config):
        if value == source.BUILT_IN and not Path(value).exists():
            path = source.resolve(value, key)
            yield key, value, {f"{value}/{name}": file for name, file in model_files.files(path).items()}
        elif Path(value).expanduser().exists():
            yield key, value, None
    for key in OTHERS:
        section, _, field = key.partition(".")
        if named := getattr(getattr(config, section), field, None):
            yield key, named, None
    for name, dataset in named_datasets(config):
        rows = dataset.source(name)
        if local.is_local(rows.path) and not rows.is_hub:
            yield f"{loading.overridden(name)}.path", rows.path, _matched(rows) if local.is_glob(rows.path) else None


def _models(config: Config) -> Iterator[tuple[str, str]]:
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


def _matched(rows: Source) -> dict[str, Path]:
    """The files of a glob by their names below the folder at which it begins."""
    root = _fixed(rows.path)
    return {path.relative_to(root).as_posix(): path for path in local.files(rows)}


def _fixed(pattern: str) -> Path:
    """The folder of a glob, as far as it has no signs of one."""
    parts = Path(pattern).expanduser().parts
    return Path(*parts[: next(number for number, part in enumerate(parts) if local.is_glob(part))])


def _copy(origin: str, parts: dict[str, Path] | None, place: Path) -> str:
    """Copy a file, a folder, or `parts` into the folder `place`; what names it there."""
    path = Path(origin).expanduser()
    if parts is None:
        kept = Path(os.path.abspath(path)).name  # "." has one too
        place.mkdir(parents=True)
        copy = shutil.copytree if path.is_dir() else shutil.copyfile
        copy(path, place / kept)
        return kept
    for name, file in parts.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place / name)
    return path.relative_to(_fixed(origin)).as_posix() if local.is_glob(origin) else origin
