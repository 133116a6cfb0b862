"""From a YAML file and ``key=value`` overrides to a `Config`; every mistake is reported, all at once.

YAML is read by the rules of version 1.2, where ``2:4`` is a text and ``1e-4`` a number (1.1 makes them 124 and
"1e-4"). Only plain data is built: no tags, no objects.
"""

from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from lors_cli.config.schema import Config
from lors_cli.errors import Problem, RequestError, nearest, request_error


def load(path: Path, overrides: list[str]) -> Config:
    """Read and check a config file.

    Args:
        path: the file.
        overrides: ``dotted.key=value`` with YAML values, applied in order.

    Raises:
        RequestError: with every problem of the file and the overrides.

    """
    raw = _read(path)
    for override in overrides:
        _apply(raw, override)
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        overridden = {override.partition("=")[0] for override in overrides}
        raise RequestError(*(_problem(detail, path, overridden) for detail in error.errors())) from None


def _yaml(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(text)


def _read(path: Path) -> dict[str, Any]:
    remedy = "give the path of a YAML file; configs/quickstart.yaml is an example"
    try:
        content = _yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise request_error("CONFIG", "an existing YAML file", "no such file", remedy, path) from None
    except (OSError, UnicodeDecodeError) as error:
        raise request_error("CONFIG", "a readable YAML file", error, remedy, path) from None
    except YAMLError as error:
        raise request_error("CONFIG", "well-formed YAML 1.2", _one_line(error), "correct that line", path) from None
    if not isinstance(content, dict):
        got = "an empty file" if content is None else type(content).__name__
        raise request_error("CONFIG", "a mapping with model, output_dir and sections", got, remedy, path)
    return content


def _one_line(error: Exception) -> str:
    return " ".join(line.strip() for line in str(error).splitlines() if line.strip() and "http" not in line)[:300]


def _apply(raw: dict[str, Any], override: str) -> None:
    """Set one dotted key of `raw`."""
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise request_error(override, "key=value, such as train.rank=32", repr(override), "write it with =", _CLI)
    *parents, last = key.split(".")
    target = raw
    for parent in parents:
        if target.get(parent) is None:
            target[parent] = {}
        if isinstance(target[parent], str) and parent in ("dataset", "eval_dataset"):
            target[parent] = {"path": target[parent]}  # the short form of a data set
        target = target[parent]
        if not isinstance(target, dict):
            raise request_error(key, f"{parent} to be a section", repr(target), "override the whole of it", _CLI)
    try:
        target[last] = _yaml(value) if value else None
    except YAMLError as error:
        raise request_error(key, "a YAML value", f"{value!r}: {_one_line(error)}", "quote it", _CLI) from None


_CLI = "command line"


def _problem(detail: Any, path: Path, overridden: set[str]) -> Problem:
    """One of pydantic's findings in our words."""
    parts = [str(part) for part in detail["loc"]]
    key = ".".join(parts) or "CONFIG"
    file = _CLI if key in overridden else str(path)
    got = repr(detail["input"])
    if isinstance(detail["input"], dict):
        got = f"the keys {sorted(map(str, detail['input']))}" if detail["input"] else "an empty section"
    if detail["type"] == "extra_forbidden":
        known = _known_keys(parts[:-1])
        return Problem(key, "a known key", f"{parts[-1]!r}", nearest(parts[-1], known), file)
    if detail["type"] == "missing":
        return Problem(key, "a value: the key is required", "nothing", f"add {parts[-1]}: to the file", file)
    expected = str(detail["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    return Problem(key, expected, got[:200], f"correct {key}; `lors --help` and the README show an example", file)


def _known_keys(section: list[str]) -> list[str]:
    """The keys that the schema allows in the (sub)section with these path parts."""
    model: type[BaseModel] = Config
    for part in section:
        field = model.model_fields.get(part)
        if field is None:
            continue
        candidates = [field.annotation, *get_args(field.annotation)]
        model = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), model)
    return list(model.model_fields)
