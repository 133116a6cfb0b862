"""Where models and files are on this machine: the names by which configs call them, replaced by local paths.

A name is what a config says, such as meta-llama/Llama-2-7b-hf, or the part of it behind the last slash.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lors_cli.config.problems import CLI
from lors_cli.config.schema import Config
from lors_cli.data.local import is_glob
from lors_cli.errors import Problem, RequestError, nearest

OPTION = "--models"
FILES = ("dataset", "eval_dataset", "path", "mask", "task_dir", "data_dir", "adapter", "resume_from")
Place = tuple[Any, Any]  # what holds the name of a model, and where in it


def parse(texts: Sequence[str]) -> dict[str, str]:
    """NAME=PATH of the command line, by name.

    Raises:
        RequestError: one is not of that form, or a name comes twice.

    """
    pairs = [text.partition("=") for text in texts]
    problems = [
        Problem(OPTION, "NAME=PATH", repr(text), f"write {OPTION} Llama-2-7b-hf=/models/llama-2-7b", CLI)
        for text, (name, _, path) in zip(texts, pairs, strict=True)
        if not (name and path)
    ]
    names = [name for name, _, _ in pairs]
    twice = sorted({name for name in names if names.count(name) > 1})
    problems += [Problem(OPTION, "each name once", f"{name!r} twice", "leave one out", CLI) for name in twice]
    if problems:
        raise RequestError(*problems)
    return {name: path for name, _, path in pairs}


def ids(raw: Mapping[str, Any]) -> set[str]:
    """The models that the content of a config names."""
    return {holder[key] for holder, key in _places(raw)}


def file_names(raw: Mapping[str, Any]) -> set[str]:
    """What the content of a config calls its data sets, masks, tasks and adapters."""
    return {holder[key] for holder, key in _file_places(raw)}


SECTIONS = {"models": ids, "files": file_names}  # of a sweep file, and what finds the names in the content of a config


def by_id(located: Mapping[str, str], known: set[str], section: str, origin: str) -> dict[str, str]:
    """The paths by the ids that are meant, out of those that the configs of a sweep have.

    Args:
        located: paths by names.
        known: the ids.
        section: the key that has the paths, for messages.
        origin: the file that has the key, or the command line, for messages.

    Raises:
        RequestError: a name fits none of them or several, two names are for one, or a path does not exist.

    """
    found: dict[str, str] = {}
    problems = []
    for name, text in located.items():
        key, path, kind = f"{section}.{name}", Path(text), section.removesuffix("s")
        meant = [name] if name in known else sorted(one for one in known if one.rpartition("/")[2] == name)
        if not meant:
            expected = f"a {kind} of the sweep: {', '.join(sorted(known)) or 'none'}"
            problems.append(Problem(key, expected, repr(name), nearest(name, sorted(known)), origin))
        elif len(meant) > 1:
            got = " and ".join(meant)
            problems.append(Problem(key, f"the name of one {kind}", got, "write its whole name", origin))
        elif meant[0] in found:
            problems.append(Problem(key, f"one path for each {kind}", f"{meant[0]} twice", "leave one out", origin))
        elif not path.exists() and not is_glob(text):
            problems.append(Problem(key, "a path that exists", f"{path}, which does not exist", "correct it", origin))
        found |= dict.fromkeys(meant, text)
    if problems:
        raise RequestError(*problems)
    return found


def locate(raw: Mapping[str, Any], models: Mapping[str, str], files: Mapping[str, str]) -> None:
    """Replace the models and the files in the content of a config by where they are."""
    for places, paths in ((_places, models), (_file_places, files)):
        for holder, key in [*places(raw)] if paths else ():
            holder[key] = paths.get(holder[key], holder[key])


def _places(raw: Any) -> Iterator[Place]:
    """Where a config names models: its own, what stages read, teachers, and what is evaluated."""
    holders: list[tuple[Any, Any]] = [(raw, "model")]
    for name in Config.model_fields:
        section = raw.get(name)
        if isinstance(section, dict):
            holders += [(section, "input"), (section.get("distill"), "teacher")]
            models = section.get("models")
            holders += [(models, number) for number in range(len(models) if isinstance(models, list) else 0)]
    for holder, key in holders:
        there = holder[key] if isinstance(holder, list) else holder.get(key) if isinstance(holder, dict) else None
        if isinstance(there, str):
            yield holder, key


def _file_places(raw: Any) -> Iterator[Place]:
    """Where a config names files, at whatever depth: a data set is a text, or has a path."""
    for key, value in raw.items() if isinstance(raw, dict) else enumerate(raw) if isinstance(raw, list) else ():
        if isinstance(value, str) and key in FILES:
            yield raw, key
        else:
            yield from _file_places(value)
