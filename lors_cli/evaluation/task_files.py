"""The local files that a task of lm-eval is made of: its own, those that it includes, its functions and its data."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from lors_cli.errors import request_error

LOCAL_FORMATS = ("json", "csv", "parquet", "text")


def definition(path: Path) -> Iterator[Path]:
    """The task file `path`, the files that it includes, and the Python files beside them whose functions they name."""
    functions: list[str] = []

    class Loader(yaml.SafeLoader):
        """Reads the names of functions without importing them."""

    Loader.add_constructor("!function", lambda loader, node: functions.append(str(loader.construct_scalar(node))))
    content = yaml.load(path.read_text(), Loader)  # noqa: S506 - a safe loader
    yield path
    for function in functions:
        module = path.parent.joinpath(*function.split(".")[:-1]).with_suffix(".py")
        if module.is_file():  # others are of packages
            yield module
    included = content.get("include", []) if isinstance(content, dict) else []
    for name in [included] if isinstance(included, str) else included:
        if (path.parent / name).is_file():
            yield from definition(path.parent / name)


def data(name: str, config: dict[str, Any], base: Path) -> list[Path]:
    """The local data files of the task `name`, which are relative to `base`.

    Raises:
        RequestError: one does not exist.

    """
    if config.get("dataset_path") not in LOCAL_FORMATS:
        return []
    files = (config.get("dataset_kwargs") or {}).get("data_files", [])
    groups = list(files.values()) if isinstance(files, dict) else [files]
    named = [f for group in groups for f in (group if isinstance(group, list) else [group])]
    plain = [file for file in named if "://" not in file and "*" not in file]
    for file in plain:
        if not (base / file).is_file():
            raise request_error(
                "eval.data_dir", f"the data file {file} of task {name}", f"no such file in {base}", "set eval.data_dir"
            )
    return [base / file for file in plain]
