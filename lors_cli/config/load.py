"""Read a YAML file and ``key=value`` overrides into a `Config`; all mistakes are reported at once."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from yaml import MarkedYAMLError, YAMLError

from lors_cli import yaml12
from lors_cli.config import recipes
from lors_cli.config.methods import complete
from lors_cli.config.problems import CLI, problems, split_key
from lors_cli.config.schema import Config
from lors_cli.errors import Problem, RequestError, request_error, together

M = TypeVar("M", bound=BaseModel)
YAML_REMEDIES = {  # by what PyYAML says
    "'\\t'": "indent with spaces, not with tabs",
    "another document": "keep one document: remove the line --- and what follows it",
    "mapping values": "put a space after each colon, indent keys of a section alike, and quote a value that has ': '",
    "found character": "put the value into quotes",
    "undefined alias": "put the value into quotes, or define the anchor above it",
    "with those that its aliases repeat": "write what is needed of it without aliases, or in several files",
    "characters": "give the path of a config, which is far smaller",
    "nested too deeply": "write the keys as configs/quickstart.yaml does",
    "surrogate": "write the character itself",
    "U+": "remove it, or write it in double quotes as an escape",
    "not of the type": "remove the tag, or correct the value",
    "digits": "write a smaller number, or put it into quotes if it is a text",
    "constructor for the tag": "remove the tag; put a value that begins with ! into quotes",
}


def load(path: Path, overrides: Sequence[str]) -> Config:
    """Read and check a config file.

    Args:
        path: the file.
        overrides: ``dotted.key=value`` with YAML values, applied in order.

    Raises:
        RequestError: with every problem of the file and the overrides.

    """
    raw = read(path)
    if is_sweep(raw):
        remedy = f"`lors sweep {path}` runs it; `lors bundle` takes it too, and `lors sweep` has --prefetch"
        raise request_error("CONFIG", "the config of one run", "a sweep file, which has arms", remedy, path)
    together(partial(override, raw), overrides)
    return configured(raw, path, dict.fromkeys(map(overridden, overrides), CLI))


def configured(raw: dict[str, Any], path: Path, origins: Mapping[str, str]) -> Config:
    """The config with the content `raw` and what its recipe sets; arguments and errors as of `checked`."""
    filled, by_recipe = recipes.fill(raw)
    return checked(Config, filled, path, {**by_recipe, **origins})


def read(path: Path) -> dict[str, Any]:
    """The content of a YAML file.

    Raises:
        RequestError: it cannot be read, or is not a mapping.

    """
    remedy = "give the path of a YAML file; configs/quickstart.yaml is an example"
    try:
        content = yaml12.parse(yaml12.read_text(path))
    except FileNotFoundError:
        first = "put it before all key=value; " if "=" in path.name else ""
        raise request_error("CONFIG", "an existing YAML file", "no such file", first + remedy, path) from None
    except UnicodeDecodeError as error:
        raise request_error("CONFIG", "a YAML file in UTF-8", error, "save it as UTF-8", path) from None
    except OSError as error:
        raise request_error("CONFIG", "a readable YAML file", error, remedy, path) from None
    except YAMLError as error:
        remedy = next((words for said, words in YAML_REMEDIES.items() if said in str(error)), "correct that line")
        raise _yaml_problem("CONFIG", "well-formed YAML 1.2", error, remedy, str(path)) from None
    if not isinstance(content, dict):
        got = "an empty file" if content is None else repr(content)[:60]
        raise request_error("CONFIG", "a mapping with model, output_dir and sections", got, remedy, path)
    return content


def is_sweep(content: dict[str, Any]) -> bool:
    """Whether a YAML file is a sweep file rather than a config."""
    return "arms" in content


def overridden(text: str) -> str:
    """The dotted key of an override, with the numbers of entries of lists as messages write them or between dots."""
    return re.sub(r"\[(\d+)\]", r".\1", text.partition("=")[0])


def override(raw: dict[str, Any], text: str) -> None:
    """Set one dotted key of `raw`, as ``key=value`` says.

    Raises:
        RequestError: the text is not of that form, or the key is inside of something that is not a section.

    """
    (_, equals, value), key = text.partition("="), overridden(text)
    if not equals or not key:
        remedy = "put = between the key and its value, and quotes around all of it if it has spaces"
        raise request_error(text, "key=value, such as train.rank=32", repr(text), remedy, CLI)
    if not value.strip():  # a variable of the shell that is not set, say
        raise request_error(key, "a value", "nothing", f"write one; {key}=null leaves {key} out", CLI)
    *parents, last = split_key(raw, key)
    target: Any = raw
    for place, parent in enumerate(parents):
        name = _entry(target, parent, key)
        if isinstance(target, dict):
            if target.get(name) is None:
                target[name] = {}
            if isinstance(target[name], str) and parent in ("dataset", "eval_dataset"):
                target[name] = {"path": target[name]}  # the short form of a data set
        target = target[name]
        if not isinstance(target, dict | list):
            whole = ".".join(parents[: place + 1])
            raise request_error(key, f"{whole} to be a section", repr(target), f"override all of it: {whole}=...", CLI)
    name = _entry(target, last, key)
    try:
        target[name] = yaml12.parse(value)
    except YAMLError as error:
        remedy = f"close its brackets and quotes, and quote the whole for the shell: '{key}=...'"
        raise _yaml_problem(key, "a YAML value", error, remedy, CLI, f"{value!r:.200}: ") from None


def _entry(target: dict[str, Any] | list[Any], name: str, key: str) -> Any:
    """What `target` has for the part `name` of the overridden `key`: the name itself, or the number in a list."""
    if isinstance(target, dict):
        return name
    if not name.isdigit() or int(name) >= len(target):
        expected = (
            f"the number of an entry, 0 to {len(target) - 1}" if target else "an entry of the list, which is empty"
        )
        raise request_error(
            key, expected, repr(name), f"override the whole list: {key.partition(f'.{name}')[0]}=[...]", CLI
        )
    return int(name)


def checked(kind: type[M], raw: dict[str, Any], path: Path, origins: Mapping[str, str]) -> M:
    """The content `raw` of the file `path` as a `kind`.

    Args:
        kind: what the file describes; its sections get the options of all methods as keys.
        raw: plain data.
        path: of the file, for messages.
        origins: what has set a key, by the key, where that was not the file.

    Raises:
        RequestError: with every problem of the content.

    """
    model = complete(kind)
    needed = {name for name, field in model.model_fields.items() if field.is_required()}
    if not needed & raw.keys() and len(raw) > 2 * len(model.model_fields.keys() & raw.keys()):
        expected = f"the keys {', '.join(model.model_fields)}"
        remedy = "give the path of a config; configs/quickstart.yaml is an example"
        raise request_error("CONFIG", expected, f"{', '.join(map(str, raw))[:200]}", remedy, path)
    try:
        return model.model_validate(raw)
    except ValidationError:
        found = problems(model, raw, origins)
    lines = yaml12.lines(yaml12.read_text(path))
    placed = []
    for problem in found:
        names = split_key(raw, problem.key)
        file, line = _place(names, path, origins, lines)
        key = "".join(f"[{name}]" if name.isdigit() else f".{name}" for name in names).removeprefix(".")
        placed.append(replace(problem, key=key, file=file, line=line))
    raise RequestError(*placed)


def _place(
    names: list[str], path: Path, origins: Mapping[str, str], lines: Mapping[tuple[str, ...], int]
) -> tuple[str, int | None]:
    """Where a key was written: in which file, and in which line; of a key that is missing, the line of its section."""
    for length in range(len(names), 0, -1):
        if origin := origins.get(".".join(names[:length])):
            return origin, None
        if line := lines.get(tuple(names[:length])):
            return str(path), line
    return str(path), None


def _yaml_problem(key: str, expected: str, error: YAMLError, remedy: str, file: str, got: str = "") -> RequestError:
    """The error of a mistake in YAML, with its line if the reader tells one."""
    what, line = " ".join(str(error).split()), None
    if isinstance(error, MarkedYAMLError) and error.problem_mark:
        what = f"{error.problem}, column {error.problem_mark.column + 1}"
        line = None if got else error.problem_mark.line + 1
        remedy = error.note or remedy
    return RequestError(Problem(key, expected, got + what, remedy, file, line))
