"""lm-eval's tasks: found, checked and built with their data, before a model is loaded."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lm_eval.tasks import TaskManager

from lors_cli import offline
from lors_cli.artifacts import digest
from lors_cli.errors import Problem, RequestError, first_line, nearest, request_error
from lors_cli.evaluation import task_check, task_files
from lors_cli.evaluation.presets import PRESETS, Benchmark

BUILT_IN_TASKS = Path(__file__).parent / "tasks"


@dataclass(frozen=True)
class Asked:
    """A task, a group or a tag that was asked for, in lm-eval's objects; by their names, the benchmarks in it."""

    name: str
    objects: list[Any]
    benchmarks: dict[str, Benchmark]

    def tasks(self) -> list[Any]:
        """The tasks themselves, those of groups included."""
        several = [one.get_all_tasks() if hasattr(one, "get_all_tasks") else [one] for one in self.objects]
        return [task for tasks in several for task in tasks]


@dataclass
class Benchmarks:
    """Everything that a config asks of lm-eval.

    Attributes:
        asked: in the order of the config, a preset's first.
        manager: lm-eval's index, in which they were found.
        digests: of the local files behind them, by task and file name.

    """

    asked: list[Asked] = field(default_factory=list)
    manager: TaskManager | None = None
    digests: dict[str, str] = field(default_factory=dict)


def load(tasks: list[str], task_dir: str | None, data_dir: str | None, **options: Any) -> Benchmarks:
    """Build the tasks that are asked for, with their data.

    The arguments are settings of the section ``eval``; `options` are its preset, shots, limit and allow_code_execution.

    Raises:
        RequestError: a directory, tasks or their data are missing, or a task is wrong; all of them are named.

    """
    tasks_in, data_in = (Path(path) if path else None for path in (task_dir, data_dir))
    for key, path in (("eval.task_dir", tasks_in), ("eval.data_dir", data_in)):
        if path and not path.is_dir():
            raise request_error(key, "an existing directory", path, "correct the path")
    return _Loader(tasks_in, data_in, **options).load(tasks)


@dataclass
class _Loader:
    task_dir: Path | None
    data_dir: Path | None
    preset: str | None
    shots: int | None
    limit: int | None
    allow_code_execution: bool

    def __post_init__(self) -> None:
        self._paths = [str(path.resolve()) for path in (BUILT_IN_TASKS, self.task_dir) if path]
        # lm-eval's own thousands of tasks take seconds to index, so only where one of them is asked for
        self._manager = TaskManager(include_path=self._paths, include_defaults=False)
        self._local = set(self._manager.all_tasks)
        self._benchmarks = Benchmarks()

    def load(self, tasks: list[str]) -> Benchmarks:
        wanted = self._of_preset()
        for name in tasks:
            if self.shots is not None and any(one.shots != self.shots for one in wanted.get(name, {}).values()):
                got = f"{name}, which the preset {self.preset} has with its own number"
                raise request_error("eval.shots", "tasks that the preset does not have", got, f"leave {name} out")
            wanted.setdefault(name, {})
        if wanted.keys() - self._local:
            self._manager = TaskManager(include_path=self._paths)
        problems: list[Problem] = []
        for name, benchmarks in wanted.items():
            try:
                asked = Asked(name, self._build(name, benchmarks), benchmarks)
                self._benchmarks.asked.append(asked)
                problems += self._problems(asked)
            except RequestError as error:
                problems += error.problems
        if problems:
            raise RequestError(*problems)
        self._benchmarks.manager = self._manager
        return self._benchmarks

    def _problems(self, asked: Asked) -> Iterator[Problem]:
        """What is wrong with tasks that could be built."""
        before = {
            task.task_name: one.name for one in self._benchmarks.asked if one is not asked for task in one.tasks()
        }
        for group in (one for one in asked.objects if hasattr(one, "get_all_tasks")):
            yield from task_check.of_group(group)
        for task in asked.tasks():
            name = task.task_name
            if name in before:
                got = f"{name} in {asked.name} and in {before[name]}"
                yield Problem(
                    "eval.tasks", "each task once, alone, in a group or in the preset", got, "name one of them"
                )
            benchmark = asked.benchmarks.get(name) or asked.benchmarks.get(asked.name)
            metrics = [m if f.name == "none" else f"{m},{f.name}" for m in task.aggregation() for f in task._filters]
            if benchmark and benchmark.metric not in metrics:
                wanted = (
                    f"{benchmark.metric} among the metrics and filters of {name}, which stands for {benchmark.task}"
                )
                remedy = "add it to metric_list, or to filter_list, in the task's file"
                yield Problem("eval.task_dir", wanted, ", ".join(metrics), remedy)
            yield from task_check.of_task(task, self.limit)

    def _of_preset(self) -> dict[str, dict[str, Benchmark]]:
        """The preset's benchmarks, by the task or group that is to be asked for; local ones stand for lm-eval's."""
        if self.preset is None:
            return {}
        benchmarks = PRESETS[self.preset]
        if (whole := f"{self.preset}_local") in self._local:
            return {whole: {one.task: one for one in benchmarks} | {whole: benchmarks[0]}}
        names = {one: (f"{one.task}_local", one.task) for one in benchmarks}
        chosen = {one: next((n for n in both if n in self._local), one.task) for one, both in names.items()}
        return {name: {name: one} for one, name in chosen.items()}

    def _build(self, name: str, benchmarks: dict[str, Benchmark]) -> list[Any]:
        entry = self._manager.task_index.get(name)
        if entry is None:
            hint = nearest(name, self._manager.all_tasks)
            raise request_error(
                "eval.tasks", "the name of an lm-eval task", repr(name), f"{hint}; or set eval.task_dir"
            )
        base = self._base(entry)
        self._digest(name, entry)
        members = (entry.cfg or {}).get("task", []) if "group" in (entry.cfg or {}) else [name]
        members = [members] if isinstance(members, str) else members
        for member in [m for m in members if isinstance(m, str) and m not in self._manager.task_index]:
            hint = nearest(member, self._manager.all_tasks)
            raise request_error("eval.tasks", f"tasks that exist in the group {name}", repr(member), hint)
        if not members:
            raise request_error("eval.tasks", f"at least one task in the group {name}", "none", "leave it out")
        try:
            with _working_in(base):  # where lm-eval looks for relative data files
                loaded = self._manager.load([name])
        except Exception as error:  # data sets that are absent or gated, and faulty task files, raise many types
            raise self._explained(name, entry, error) from None
        for task_name, task in loaded["tasks"].items():
            if task_name != name and (member := self._manager.task_index.get(task_name)):
                self._digest(task_name, member)
            benchmark = benchmarks.get(task.task_name) or benchmarks.get(name)
            shots = benchmark.shots if benchmark else self.shots
            if getattr(task, "UNSAFE_CODE", False) and not self.allow_code_execution:
                raise request_error(
                    "eval.allow_code_execution",
                    f"true for {name}, which runs the programs that the model writes",
                    "false",
                    "set it where that can do no harm, such as in a container",
                )
            if task.OUTPUT_TYPE == "loglikelihood_rolling":  # scores whole texts, without a prompt
                shots = 0
            if shots is not None:
                task.set_config(key="num_fewshot", value=shots)
        group = loaded.get("groups", {}).get(name)
        return [group] if group else list(loaded["tasks"].values())

    def _digest(self, name: str, entry: Any) -> None:
        """Remember the local files of a task or group, so that results of other ones are not taken for its own."""
        files = task_files.data(name, entry.cfg or {}, self._base(entry))
        if entry.yaml_path and name in self._local:
            files = [*task_files.definition(entry.yaml_path), *files]
        self._benchmarks.digests.update({f"{name}: {path.name}": digest.of_file(path) for path in files})

    def _base(self, entry: Any) -> Path:
        """What the data files of a task are relative to."""
        path = entry.yaml_path
        if path is None:  # a tag, which has no file; those of its tasks are in one directory
            of_tag = (one.yaml_path for one in self._manager.task_index.values() if entry.name in one.tags)
            path = next(of_tag, None)
        if path and BUILT_IN_TASKS in path.parents:
            return BUILT_IN_TASKS
        if path and self.task_dir and self.task_dir.resolve() in path.resolve().parents:
            return (self.data_dir or self.task_dir).resolve()
        return Path.cwd()

    def _explained(self, name: str, entry: Any, error: Exception) -> RequestError:
        reason = first_line(error)
        if not isinstance(error, ConnectionError | OSError):
            where = f" ({entry.yaml_path})" if entry.yaml_path else ""
            got = f"{type(error).__name__}: {reason}"
            return request_error("eval.tasks", f"a correct task {name!r}{where}", got, "correct its file")
        if isinstance(error, ConnectionError):
            offline.switch_on()  # asking for each of the others would take as long as for the first
        data_set = (entry.cfg or {}).get("dataset_path")
        return request_error(
            "eval.tasks",
            f"the data set of {name}{f', {data_set},' if data_set else ''} in the cache or on the hub",
            reason,
            "on a machine with a network: lors eval CONFIG --prefetch, with the same HF_HOME or a copy of it; or name"
            " local copies with eval.task_dir",
        )


@contextmanager
def _working_in(directory: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(directory)
    try:
        yield
    finally:
        os.chdir(before)
