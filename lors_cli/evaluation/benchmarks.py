"""lm-eval's tasks: found, checked and built with their data, before a model is loaded."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lm_eval.tasks import TaskManager

from lors_cli import offline
from lors_cli.artifacts import digest, inputs, temporary
from lors_cli.errors import LorsError, Problem, RequestError, first_line, nearest, request_error
from lors_cli.evaluation import (
    code_eval,
    code_execution,
    humaneval,
    items,
    task_check,
    task_data,
    task_files,
    task_source,
    templates,
)
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
        trusted: whether no task is of authors whose code must not run.
        enclosures: what encloses the programs that models write, by the tasks that run such.

    """

    asked: list[Asked] = field(default_factory=list)
    manager: TaskManager | None = None
    digests: dict[str, str] = field(default_factory=dict)
    trusted: bool = True
    enclosures: dict[str, str] = field(default_factory=dict)

    def rendering(self) -> AbstractContextManager[None]:
        """Where the templates of the tasks are rendered: in a sandbox if these are not trusted."""
        return nullcontext() if self.trusted else templates.sandboxed()


def load(tasks: list[str], task_dir: str | None, data_dir: str | None, **options: Any) -> Benchmarks:
    """Build the tasks that are asked for, with their data.

    The arguments are settings of the section ``eval``; `options` are its preset, shots, limit,
    allow_code_execution and trust_task_code.

    Raises:
        RequestError: a directory, tasks or their data are missing, or a task is wrong; all of them are named.

    """
    tasks_in, data_in = (Path(path) if path else None for path in (task_dir, data_dir))
    for key, path in (("eval.task_dir", tasks_in), ("eval.data_dir", data_in)):
        if path and not path.is_dir():
            raise request_error(key, "an existing directory", path, "correct the path")
    with temporary.directory("tasks") as copies:
        loader = _Loader(tasks_in, data_in, copies.resolve(), **options)
        with loader.benchmarks.rendering():
            return loader.load(tasks)


@dataclass
class _Loader:
    task_dir: Path | None
    data_dir: Path | None
    copies: Path
    preset: str | None
    shots: int | None
    limit: int | None
    allow_code_execution: bool | str
    trust_task_code: bool

    def __post_init__(self) -> None:
        read_from, self._foreign = self.task_dir, None
        there = self.task_dir.resolve().rglob("*") if self.task_dir else []
        self._signatures = {path: digest.signature(path) for path in there if path.is_file()}
        if self.task_dir and not self.trust_task_code:
            self._foreign = task_source.read(self.task_dir.resolve(), self.data_dir)
            self._foreign.write(self.copies)
            read_from = self.copies
        self._paths = [str(path.resolve()) for path in (BUILT_IN_TASKS, read_from) if path]
        # lm-eval's own thousands of tasks take seconds to index, so only where one of them is asked for
        self._manager = TaskManager(include_path=self._paths, include_defaults=False)
        self._local = set(self._manager.all_tasks)
        self._digested: dict[Path, str] = {}
        self.benchmarks = Benchmarks(trusted=self._foreign is None)

    def load(self, tasks: list[str]) -> Benchmarks:
        wanted = self._of_preset()
        for name in tasks:
            if self.shots is not None and any(one.shots != self.shots for one in wanted.get(name, {}).values()):
                got = f"{name}, which the preset {self.preset} has with its own number"
                raise request_error("eval.shots", "tasks that the preset does not have", got, f"leave {name} out")
            wanted.setdefault(name, {})
        if set().union(*map(self._named, wanted)) - self._local:
            self._manager = TaskManager(include_path=self._paths)
        problems: list[Problem] = []
        for name, benchmarks in wanted.items():
            try:
                asked = Asked(name, self._build(name, benchmarks), benchmarks)
                self.benchmarks.asked.append(asked)
                problems += self._problems(asked)
            except RequestError as error:
                problems += error.problems
        if problems:
            raise RequestError(*problems)
        self.benchmarks.manager = self._manager
        return self.benchmarks

    def _problems(self, asked: Asked) -> Iterator[Problem]:
        """What is wrong with tasks that could be built."""
        others = [one for one in self.benchmarks.asked if one is not asked]
        before = {items.file_key(task.task_name): (task.task_name, one) for one in others for task in one.tasks()}
        for name in dict.fromkeys([asked.name, *(task.task_name for task in asked.tasks())]):
            if not items.is_task(name):
                remedy = "rename it in the task's file"
                yield Problem("eval.tasks", f"a name with {items.TASK_NAMES}", repr(name)[:200], remedy)
        for group in (one for one in asked.objects if hasattr(one, "get_all_tasks")):
            yield from task_check.of_group(group)
        for task in asked.tasks():
            name = task.task_name
            other, where = before.setdefault(items.file_key(name), (name, asked))
            if where is not asked:
                got = f"{name} in {asked.name} and {'' if other == name else f'{other} '}in {where.name}"
                expected = "each task once, alone, in a group or in the preset"
                yield Problem("eval.tasks", expected, got, "name one of them")
            elif other != name:
                yield Problem(
                    "eval.tasks", "names that differ in more than upper case", f"{other}, {name}", "rename one"
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

    def _named(self, name: str, within: frozenset[str] = frozenset()) -> set[str]:
        """A name, and those that it stands for if it is a group of a directory."""
        content = ((entry := self._manager.task_index.get(name)) and entry.cfg) or {}
        listed = content.get("task") if "group" in content and name not in within else None
        members = [listed] if isinstance(listed, str) else listed or []
        return {name}.union(*(self._named(one, within | {name}) for one in members if isinstance(one, str)))

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
        problems = list(self._foreign.problems(name, self._manager.task_index)) if self._foreign else []
        if problems:
            raise RequestError(*problems)
        base = self._base(entry)
        files = self._digest(name, entry)
        members = (entry.cfg or {}).get("task", []) if "group" in (entry.cfg or {}) else [name]
        members = [members] if isinstance(members, str) else members
        for member in [m for m in members if isinstance(m, str) and m not in self._manager.task_index]:
            hint = nearest(member, self._manager.all_tasks)
            raise request_error("eval.tasks", f"tasks that exist in the group {name}", repr(member), hint)
        if not members:
            raise request_error("eval.tasks", f"at least one task in the group {name}", "none", "leave it out")
        named = (self._manager.task_index.get(member) for member in members if isinstance(member, str))
        files += [path for member in named if member for path in self._files(member.name, member)]
        try:
            may_run = code_execution.permitted() if self.allow_code_execution else nullcontext()
            # lm-eval looks for relative data files where it works; some of its modules try a program when imported
            with _working_in(base), task_data.by_content() as read, may_run, code_eval.in_place():
                loaded = inputs.steadily(files, lambda: self._manager.load([name]))
        except LorsError:
            raise
        except Exception as error:  # data sets that are absent or gated, and faulty task files, raise many types
            raise self._explained(name, entry, error) from None
        for task_name, task in loaded["tasks"].items():
            if task_name != name and (member := self._manager.task_index.get(task_name)):
                self._digest(task_name, member)
            config = {key: getattr(task.config, key, None) for key in ("dataset_path", "dataset_kwargs")}
            self._remember(task_name, task_files.data(task_name, config, base), base)  # as groups may change it
            benchmark = benchmarks.get(task.task_name) or benchmarks.get(name)
            shots = benchmark.shots if benchmark else self.shots
            if getattr(task, "UNSAFE_CODE", False):
                enclosure = humaneval.permit(task, self.allow_code_execution)
                self.benchmarks.enclosures[task.task_name] = enclosure
            if task.OUTPUT_TYPE == "loglikelihood_rolling":  # scores whole texts, without a prompt
                shots = 0
            if shots is not None:
                task.set_config(key="num_fewshot", value=shots)
        self._remember(name, read, base)  # what nothing above tells of, such as that of a data_dir
        group = loaded.get("groups", {}).get(name)
        return [group] if group else list(loaded["tasks"].values())

    def _digest(self, name: str, entry: Any) -> list[Path]:
        """Remember the local files of a task or group, so that results of other ones are not taken for its own."""
        files = self._files(name, entry)
        self._remember(name, files, self._base(entry))
        return files

    def _files(self, name: str, entry: Any) -> list[Path]:
        files = task_files.data(name, entry.cfg or {}, self._base(entry))
        if (path := self._file(entry)) and name in self._local:
            return [*task_files.definition(path), *files]
        return files

    def _remember(self, name: str, files: list[Path], base: Path) -> None:
        for path in (path for path in files if path not in self._digested):
            if self._signatures.get(path, now := digest.signature(path)) != now:
                raise inputs.InputChangedError(f"{path} was changed while it was read; {inputs.AGAIN}")
            short = f"{name}: {path.name}"
            key = f"{name}: {os.path.relpath(path, base)}" if short in self.benchmarks.digests else short
            self.benchmarks.digests[key] = self._digested[path] = inputs.of_file(path)

    def _base(self, entry: Any) -> Path:
        """What the data files of a task are relative to."""
        path = self._file(entry)
        if path is None:  # a tag, which has no file; those of its tasks are in one directory
            path = next((self._file(one) for one in self._manager.task_index.values() if entry.name in one.tags), None)
        if path and BUILT_IN_TASKS in path.parents:
            return BUILT_IN_TASKS
        if path and self.task_dir and self.task_dir.resolve() in {*path.parents, *path.resolve().parents}:
            return (self.data_dir or self.task_dir).resolve()
        return Path.cwd()

    def _file(self, entry: Any) -> Path | None:
        """The file of a task or group; none of a tag."""
        path: Path | None = entry.yaml_path
        return self._foreign.copies.get(path, path) if self._foreign and path else path

    def _explained(self, name: str, entry: Any, error: Exception) -> RequestError:
        reason = first_line(error)
        if not isinstance(error, ConnectionError | OSError):
            where = f" ({path})" if (path := self._file(entry)) else ""
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
