"""Benchmarks through lm-eval's public interface, with the model in memory. The only file that knows lm-eval."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lm_eval
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lors_cli.artifacts import digest
from lors_cli.errors import LorsError, RequestError, nearest, request_error

BUILT_IN_TASKS = Path(__file__).parent / "tasks"
CPU_BATCH_SIZE = 8
LOCAL_FORMATS = ("json", "csv", "parquet", "text")


def load_tasks(names: list[str], task_dir: Path | None, data_dir: Path | None) -> tuple[dict[str, Any], dict[str, str]]:
    """Build the tasks with their data, so that whatever is missing is found before a model is loaded.

    Args:
        names: of tasks or groups, from `task_dir`, from lors or from lm-eval.
        task_dir: a directory of task YAML files.
        data_dir: what the data files of those are relative to; `task_dir` if None.

    Returns:
        lm-eval's task objects by the name that was asked for, and the digests of the local files behind them.

    Raises:
        RequestError: a directory, a task or its data is missing.

    """
    for key, path in (("eval.task_dir", task_dir), ("eval.data_dir", data_dir)):
        if path and not path.is_dir():
            raise request_error(key, "an existing directory", path, "correct the path")
    paths = [path.resolve() for path in (BUILT_IN_TASKS, task_dir) if path]
    manager = TaskManager(include_path=[str(path) for path in paths], include_defaults=False)
    known = manager.all_tasks
    if set(names) - set(known):
        # indexing lm-eval's own thousands of tasks takes seconds, so only where one of them is asked for
        manager = TaskManager(include_path=[str(path) for path in paths])
    digests: dict[str, str] = {}
    return {name: _load(manager, name, task_dir, data_dir, known, digests) for name in names}, digests


def _load(
    manager: TaskManager,
    name: str,
    task_dir: Path | None,
    data_dir: Path | None,
    local: list[str],
    digests: dict[str, str],
) -> list[Any]:
    entry = manager.task_index.get(name)
    if entry is None:
        hint = nearest(name, local) if local else ""
        raise request_error("eval.tasks", "the name of an lm-eval task", repr(name), f"{hint}; or set eval.task_dir")
    base = Path.cwd()
    if entry.yaml_path and BUILT_IN_TASKS in entry.yaml_path.parents:
        base = BUILT_IN_TASKS
    elif entry.yaml_path and task_dir and task_dir.resolve() in entry.yaml_path.resolve().parents:
        base = (data_dir or task_dir).resolve()
    try:
        files = _data_files(name, entry.cfg or {}, base)
        local_yaml = [entry.yaml_path] if entry.yaml_path and name in local else []
        digests.update({f"{name}: {path.name}": digest.of_file(path) for path in [*local_yaml, *files]})
        with _working_in(base):  # where lm-eval looks for relative data files
            return list(manager.load([name])["tasks"].values())
    except RequestError:
        raise
    except Exception as error:  # data sets that are absent or gated, and faulty task files, raise many types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise request_error(
            "eval.tasks",
            f"the task {name!r} with its data",
            reason,
            "fetch its data set where there is a network, or use a local task directory (eval.task_dir)",
        ) from None


def _data_files(name: str, config: dict[str, Any], base: Path) -> list[Path]:
    """The local data files of a task, each checked to exist."""
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


@contextmanager
def _working_in(directory: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(directory)
    try:
        yield
    finally:
        os.chdir(before)


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: list[Any],
    *,
    limit: int | None,
    batch_size: int | str,
) -> dict[str, dict[str, Any]]:
    """The metrics of each task, with standard errors ("acc", "acc_stderr") and the number of items "n".

    Raises:
        LorsError: lm-eval failed.

    """
    if batch_size == "auto" and model.device.type == "cpu":
        batch_size = CPU_BATCH_SIZE  # lm-eval searches by running out of memory, which no CPU does in good time
    try:
        wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, max_batch_size=64)
        outcome = lm_eval.simple_evaluate(model=wrapped, tasks=tasks, limit=limit, log_samples=False)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, KeyError, TypeError, OSError) as error:
        raise LorsError(f"lm-eval failed: {error}") from error
    if outcome is None:
        raise LorsError("lm-eval returned no result")
    return {name: _tidy(found, outcome, name) for name, found in outcome["results"].items()}


def _tidy(found: dict[str, Any], outcome: Any, name: str) -> dict[str, Any]:
    """lm-eval's "acc,none" as "acc"; a filter other than none stays in the name."""
    metrics = {key.removesuffix(",none"): v for key, v in found.items() if isinstance(v, int | float) and "," in key}
    samples = outcome.get("n-samples", {}).get(name, {})
    return {
        **metrics,
        "n": samples.get("effective"),
        "shots": outcome.get("n-shot", {}).get(name),
        "version": outcome.get("versions", {}).get(name),
    }
