"""Read a YAML file and ``key=value`` overrides into a `Config`; all mistakes are reported at once."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from yaml import MarkedYAMLError, YAMLError

from lors_cli.config import yaml12
from lors_cli.config.methods import complete, section_of
from lors_cli.config.schema import Config
from lors_cli.errors import Problem, RequestError, nearest, request_error

M = TypeVar("M", bound=BaseModel)
CLI = "command line"


def load(path: Path, overrides: Sequence[str]) -> Config:
    """Read and check a config file.

    Args:
        path: the file.
        overrides: ``dotted.key=value`` with YAML values, applied in order.

    Raises:
        RequestError: with every problem of the file and the overrides.

    """
    raw = read(path)
    for text in overrides:
        override(raw, text)
    return checked(Config, raw, path, {text.partition("=")[0]: CLI for text in overrides})


def read(path: Path) -> dict[str, Any]:
    """The content of a YAML file.

    Raises:
        RequestError: it cannot be read, or is not a mapping.

    """
    remedy = "give the path of a YAML file; configs/quickstart.yaml is an example"
    try:
        content = yaml12.parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise request_error("CONFIG", "an existing YAML file", "no such file", remedy, path) from None
    except (OSError, UnicodeDecodeError) as error:
        raise request_error("CONFIG", "a readable YAML file", error, remedy, path) from None
    except YAMLError as error:
        raise _yaml_problem("CONFIG", "well-formed YAML 1.2", error, "correct that line", str(path)) from None
    if not isinstance(content, dict):
        got = "an empty file" if content is None else type(content).__name__
        raise request_error("CONFIG", "a mapping with model, output_dir and sections", got, remedy, path)
    return content


def override(raw: dict[str, Any], text: str) -> None:
    """Set one dotted key of `raw`, as ``key=value`` says.

    Raises:
        RequestError: the text is not of that form, or the key is inside of something that is not a section.

    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise request_error(
            text, "key=value, such as train.rank=32", repr(text), "put = between the key and its value", CLI
        )
    *parents, last = key.split(".")
    target = raw
    for parent in parents:
        if target.get(parent) is None:
            target[parent] = {}
        if isinstance(target[parent], str) and parent in ("dataset", "eval_dataset"):
            target[parent] = {"path": target[parent]}  # the short form of a data set
        target = target[parent]
        if not isinstance(target, dict):
            raise request_error(key, f"{parent} to be a section", repr(target), "override the whole of it", CLI)
    try:
        target[last] = yaml12.parse(value) if value else None
    except YAMLError as error:
        raise _yaml_problem(key, "a YAML value", error, "quote it", CLI, f"{value!r}: ") from None


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
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        details = error.errors()
    lines = yaml12.lines(path.read_text(encoding="utf-8"))
    problems: dict[str, Problem] = {}
    for detail in details:
        problem = _problem(model, raw, detail)
        if other := problems.get(problem.key):  # a value of several types, none of which it has
            problem = replace(other, expected=f"{other.expected}, or {problem.expected}")
        problems[problem.key] = problem
    for key, problem in problems.items():
        file, line = _place(key, path, origins, lines)
        problems[key] = replace(problem, key=re.sub(r"\.(\d+)\b", r"[\1]", key), file=file, line=line)
    raise RequestError(*problems.values())


def _place(
    key: str, path: Path, origins: Mapping[str, str], lines: Mapping[tuple[str, ...], int]
) -> tuple[str, int | None]:
    """Where a key was written: in which file, and in which line; of a key that is missing, the line of its section."""
    parts = key.split(".")
    for length in range(len(parts), 0, -1):
        if origin := origins.get(".".join(parts[:length])):
            return origin, None
        if line := lines.get(tuple(parts[:length])):
            return str(path), line
    return str(path), None


def _problem(model: type[BaseModel], raw: dict[str, Any], detail: ErrorDetails) -> Problem:
    """One of pydantic's findings in our words."""
    kind, told = detail["type"], detail.get("ctx", {})
    named = [*map(str, detail["loc"]), *(told["key"].split(".") if kind == "wrong" and told["key"] else [])]
    parts, value, section, default = _follow(model, raw, named)
    key = ".".join(parts) or "CONFIG"
    got = "nothing" if value is None else repr(value)[:200]
    if isinstance(value, dict):
        got = f"the keys {sorted(map(str, value))}" if value else "an empty section"
    if kind == "extra_forbidden":
        return Problem(key, "a known key", f"{parts[-1]!r}", nearest(parts[-1], list(section.model_fields)))
    if kind == "missing":
        return Problem(key, "a value: the key is required", "nothing", f"add {parts[-1]}: to the file")
    if kind == "model_type":
        return Problem(key, "a section", got, f"write the keys of {key} below it, or between braces")
    expected = str(detail["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    remedy = f"write such a value for {parts[-1]}, or leave it out, which means {json.dumps(default)}"
    if kind == "wrong":
        remedy = told["remedy"]
    elif kind == "literal_error":
        remedy = nearest(str(value), re.findall(r"[\w.:-]+", expected.replace(" or ", " ")))
    elif default is None:
        remedy = f"write such a value for {parts[-1]}; docs/config.md says what it means"
    return Problem(key, expected, got, remedy)


def _follow(
    model: type[BaseModel], raw: dict[str, Any], names: list[str]
) -> tuple[list[str], Any, type[BaseModel], Any]:
    """The `names` that are keys, the value that the last one has, the class of its section, and its default.

    The other names are pydantic's, for the alternatives of a type.
    """
    parts: list[str] = []
    value: Any = raw
    section = inside = model
    field = None
    for name in names:
        if isinstance(value, list) and name.isdigit():
            value = value[int(name)]
        elif isinstance(value, dict):
            section, field, value = inside, inside.model_fields.get(name), value.get(name)
            inside = (field and section_of(field)) or section
        else:
            break
        parts.append(name)
    return parts, value, section, field.default if field and not field.is_required() else None


def _yaml_problem(key: str, expected: str, error: YAMLError, remedy: str, file: str, got: str = "") -> RequestError:
    """The error of a mistake in YAML, with its line if the reader tells one."""
    what, line = str(error), None
    if isinstance(error, MarkedYAMLError) and error.problem_mark:
        what = f"{error.problem}, column {error.problem_mark.column + 1}"
        line = None if got else error.problem_mark.line + 1
    return RequestError(Problem(key, expected, got + what, remedy, file, line))
