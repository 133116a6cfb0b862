"""The local files that a task of lm-eval is made of: its own, those that it includes, its functions and its data."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from lors_cli.errors import request_error

LOCAL_FORMATS = ("json", "csv", "parquet", "text")


def definition(path: Path) -> Iterator[Path]:
    """The task file `path`, those that it includes, and where they name a function all Python files beside them."""
    functions: list[str] = []

    class Loader(yaml.SafeLoader):
        """Reads the names of functions without importing them."""

    Loader.add_constructor("!function", lambda loader, node: functions.append(str(loader.construct_scalar(node))))
    content = yaml.load(path.read_text(), Loader)  # noqa: S506 - a safe loader
    yield path
    beside = path.resolve().parent  # as for lm-eval
    modules = [beside.joinpath(*function.split(".")[:-1]).with_suffix(".py") for function in functions]
    if any(module.is_file() for module in modules):  # others are of packages
        yield from dict.fromkeys([*modules, *sorted(beside.rglob("*.py"))])
    included = content.get("include", []) if isinstance(content, dict) else []
    for name in [included] if isinstance(included, str) else included:
        if (beside / name).is_file():
            yield from definition(beside / name)


def named(config: dict[str, Any]) -> list[str]:
    """The data files that a task names, patterns as they are, whatever they are grouped by."""
    files = (config.get("dataset_kwargs") or {}).get("data_files") or []
    groups = list(files.values()) if isinstance(files, dict) else [files]
    return [str(file) for group in groups for file in (group if isinstance(group, list) else [group])]


def matching(base: Path, file: str) -> list[Path]:
    """The files that a name or a pattern of data files stands for; none if they are not on this machine."""
    if "://" in file:
        return []
    if (base / file).exists():
        return [base / file]
    *_, root = Path("/", file).parents
    return sorted((root if Path(file).is_absolute() else base).glob(file.lstrip("/")))


def data(name: str, config: dict[str, Any], base: Path) -> list[Path]:
    """The local data files of the task `name`, which are relative to `base`; of a local directory all that it has.

    Raises:
        RequestError: one does not exist.

    """
    data_set = config.get("dataset_path")
    if data_set not in LOCAL_FORMATS:
        return sorted(path for path in (base / data_set).rglob("*") if path.is_file()) if data_set else []
    found = {file: matching(base, file) for file in named(config) if "://" not in file}
    for file in (file for file, paths in found.items() if not paths):
        raise request_error(
            "eval.data_dir", f"the data file {file} of task {name}", f"no such file in {base}", "set eval.data_dir"
        )
    return [path for paths in found.values() for path in paths]
