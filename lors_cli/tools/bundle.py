"""``lors bundle``: all that a config needs, in one directory that a machine without a network runs from.

    config.yaml     the config with its overrides; what was a local path is a path in the bundle
    files/          the local models, data sets, masks and tasks that it names
    hub/            what came from the hub, as HF_HOME
    wheels/         lors and what it depends on, for pip install --no-index --find-links
    bundle.json     the keys of the paths, the command that made it, and the size and digest of every file

A bundle of a sweep file (`lors_cli.search.bundled`) has that in the place of the config.

The parts of the hub stay in the unfinished directory if a bundle is interrupted, so that the same command goes on.
"""

import json
import logging
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lors_cli import __version__, console
from lors_cli.artifacts import digest, files, publish
from lors_cli.artifacts.files import write_json, write_text
from lors_cli.config import load as loading
from lors_cli.config.schema import Config
from lors_cli.errors import Problem, RequestError, request_error, together
from lors_cli.run.layout import EVALUATED
from lors_cli.tools import wheels
from lors_cli.tools.prefetch import prefetch
from lors_cli.tools.taken import Named, copy, local, missing

log = logging.getLogger(__name__)

NAME, CONFIG = "bundle.json", "config.yaml"
VERSION = 1


@dataclass(frozen=True)
class Request:
    """What a bundle is made of.

    Attributes:
        command: the one that makes it.
        named: what is taken along.
        content: from the places in the bundle of what is named, in their order: the file that is run from it, and what
            `opened` is to make of that.
        fetch: fetches what comes from the hub; gives a line for each thing.

    """

    command: list[str]
    named: list[Named]
    content: Callable[[list[str]], tuple[dict[str, Any], dict[str, Any]]]
    fetch: Callable[[], Iterable[str]]


def make(path: Path, overrides: Sequence[str], directory: Path, *, with_wheels: bool, force: bool = False) -> None:
    """Collect what the config at `path` needs into `directory`; raises what `assemble` does."""
    config, raw = loading.load(path, overrides), loading.read(path)
    together(lambda text: loading.override(raw, text), overrides)
    here = [*local(config)]

    def content(places: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
        paths = {one.key: place for one, place in zip(here, places, strict=True)}
        for key, place in paths.items():
            loading.override(raw, f"{key}={json.dumps(place)}")
        return raw, {"paths": paths}

    command = ["lors", "bundle", str(path), str(directory), *overrides]
    asked = Request(command, here, content, lambda: prefetch(config))
    assemble(asked, directory, with_wheels=with_wheels, force=force)


def assemble(asked: Request, directory: Path, *, with_wheels: bool, force: bool) -> None:
    """Collect what is asked for into `directory`.

    The hub's libraries have to keep what they fetch in ``hub`` of the unfinished directory (`offline.use_home`).

    Raises:
        RequestError: `directory` is taken; or something is not there and could not be fetched: all of that is named.
        LorsError: pip could not fetch the wheels.

    """
    if directory.exists() and not (force and (directory / NAME).is_file()):
        remedy = "name another directory; --force replaces a bundle"
        raise request_error("DIR", "a directory that does not exist yet", f"{directory}, which does", remedy)
    partial = publish.partial_directory(directory)
    for one in asked.named:
        if one.parts is None and partial.resolve().is_relative_to(Path(one.origin).expanduser().resolve()):
            expected = f"a directory outside of the folder that {one.key} names"
            raise request_error("DIR", expected, f"{directory} in {one.origin}", "name another directory")
    with publish.exclusive(directory.parent):
        for left in ("files", "wheels"):
            publish.remove(partial / left)
        (partial / "files").mkdir(parents=True, exist_ok=True)
        lines = _fetched(asked)
        copied: dict[str, str] = {}
        for one in asked.named:
            if one.origin not in copied:  # a file that several keys name is taken once
                place = Path("files") / str(len(copied))
                copied[one.origin] = (place / copy(one.origin, one.parts, partial / place)).as_posix()
            log.info("bundle: %s: %s", one.key, one.origin)
        for line in lines:
            if line.partition(":")[0] not in EVALUATED:  # what the stages make stays here: they run again there
                log.info("bundle: %s", line)
        if with_wheels:
            wheels.download(partial / "wheels")
        raw, facts = asked.content([copied[one.origin] for one in asked.named])
        write_text(partial / CONFIG, yaml.safe_dump(raw, sort_keys=False, allow_unicode=True))
        command = shlex.join([*asked.command, *["--no-wheels"] * (not with_wheels)])
        listed = _listed(partial)
        content = {"version": VERSION, "lors": __version__, "command": command, **facts, "files": listed}
        write_json(partial / NAME, content)
        publish.publish(partial, directory)
    total = sum(one["bytes"] for one in listed.values())
    runs = "sweep" if loading.is_sweep(raw) else "run"
    log.info("bundle: %.3f GB; on the other machine: lors %s --bundle %s", total / 1e9, runs, directory)
    console.result(str(directory))


def _fetched(asked: Request) -> list[str]:
    """What there is of the hub now, a line for each thing.

    Raises:
        RequestError: something is not there, there or on this machine: all is named.

    """
    lines: list[str] = []
    problems: list[Problem] = []
    try:
        lines += asked.fetch()
    except RequestError as error:
        problems += error.problems
    said = " ".join(map(str, problems))
    problems += [problem for problem in missing(asked.named) if problem.got not in said]
    if problems:
        raise RequestError(*problems)
    return lines


def config(directory: Path, overrides: Sequence[str]) -> Config:
    """The config of a bundle with `overrides`; raises what `opened` does.

    Raises:
        RequestError: it is a bundle of a sweep file.

    """
    path, own = opened(directory)
    if loading.is_sweep(loading.read(path)):
        remedy = f"lors sweep --bundle {directory}"
        raise request_error("--bundle", "a bundle of the config of one run", "one of a sweep file", remedy, path)
    return loading.load(path, [*own, *overrides])


def opened(directory: Path) -> tuple[Path, list[str]]:
    """The file that a bundle runs, whose files are all as they were, and the overrides by which that finds them.

    Raises:
        RequestError: it is no bundle, or files are missing or changed: all are named, with the command that makes it.

    """
    facts = _facts(directory)
    remedy = f"copy it again, or make it again where there is a network: {facts['command']} --force"
    if wrong := [Problem(name, "the file as it was bundled", got, remedy) for name, got in _wrong(directory, facts)]:
        raise RequestError(*wrong).in_file(str(directory))
    here = directory.absolute()
    texts = list(facts.get("overrides", []))
    for key, places in facts.get("located", {}).items():
        texts.append(f"{key}={json.dumps({name: str(here / place) for name, place in places.items()})}")
    texts += [f"{key}={json.dumps(str(here / place))}" for key, place in facts["paths"].items()]
    return directory / CONFIG, texts


def _facts(directory: Path) -> dict[str, Any]:
    """What a bundle says of itself.

    Raises:
        RequestError: it is no bundle, of another version, or its file does not have the form that `make` gives it.

    """
    again = "make it again where there is a network"
    try:
        facts = files.read_object(directory / NAME)
        if facts.get("version") == VERSION:
            places = [facts["paths"], *facts.get("located", {}).values()]
            texts = [facts["command"], *facts.get("overrides", []), *(one["sha256"] for one in facts["files"].values())]
            texts += [text for one in places for text in one.values()]
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
