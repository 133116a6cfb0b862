"""What both forms of a sweep do alike: check everything, do one task after another, and make a table at the end."""

import logging
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

from lors_cli import console
from lors_cli.artifacts import publish
from lors_cli.config.fields import named_datasets
from lors_cli.config.problems import CLI
from lors_cli.config.schema import Config
from lors_cli.data import once
from lors_cli.errors import LorsError, RequestError, request_error, together
from lors_cli.run import early
from lors_cli.search import runs
from lors_cli.search.runs import Run, Start

if TYPE_CHECKING:
    from lors_cli.search.totals import Totals

log = logging.getLogger(__name__)


class Sweep(ABC):
    """All tasks by their names, or only number `task`, while other processes do the others.

    `lock` names the directory in `output`, and in that of each start, by which processes wait for each other; no stage
    writes to it, since stages lock their own.

    Raises:
        RequestError: a task of that number does not exist.

    """

    lock: str
    keeps_merged = True

    def __init__(self, output: Path, names: list[str], task: int | None, *, force: bool) -> None:
        if task is not None and not 0 <= task < len(names):
            expected = f"the number of a run, 0 to {len(names) - 1}"
            raise request_error("--task", expected, task, "--dry-run without --task lists the numbers", CLI)
        self.output, self.names, self.alone, self.force = output, names, task is None, force
        self.numbers = list(range(len(names))) if task is None else [task]
        self.force_shared = force and self.alone  # otherwise other tasks may be training from it already
        self.totals: Totals | None = None  # once it was checked

    def check(self) -> None:
        """Prepare everything without doing it.

        Raises:
            RequestError: with the problems of all tasks.

        """
        starts = [start for start in self._starts() if start.stages]
        checks = [(start.config, start.stages, self.force_shared) for start in starts]
        shared: list[list[str]] = []
        for number in self.numbers:
            start, first = self._first(number)
            run = start.before(first, again=self.force_shared) if start else first
            shared.append([stage for stage in run.stages if stage not in first.stages])
            checks.append((run.config, run.stages, self.force))
        together(lambda check: early.check(check[0], check[1]), checks)
        with once.shared():
            jobs = together(lambda check: runs.check(check[0], check[1], force=check[2]), checks)
        from lors_cli.search.totals import Totals  # with torch, for which a mistake in a file need not wait

        self.totals = Totals()
        for made in jobs[: len(starts)]:
            self.totals.add_shared(made)
        for number, made, before in zip(self.numbers, jobs[len(starts) :], shared, strict=True):
            self.totals.add_runs(made, self._trainings(number), before)

    def fetched(self) -> list[str]:
        """Fetch everything that the tasks need from the hub; a line for each thing that is there now.

        Raises:
            RequestError: something could not be had; all of it is named, and the rest was fetched.

        """
        from lors_cli.tools.prefetch import prefetch

        lines = together(prefetch, self.needed())
        return list(dict.fromkeys(line for some in lines for line in some))

    def needed(self) -> list[Config]:
        """Configs that name all models, data sets and tasks that the starts and the tasks read, each once."""
        from lors_cli.tools import taken

        configs = [*(start.making_only for start in self._starts()), *self._read_by_runs()]
        named = [repr((config.eval, *taken.models(config), *named_datasets(config))) for config in configs]
        return list(dict(zip(named, configs, strict=True)).values())

    def _read_by_runs(self) -> list[Config]:
        """The configs of the tasks' runs, without models of the sweep that are still to be made."""
        configs = []
        for number in self.numbers:
            start, _ = self._first(number)
            for run in self._runs(number):
                made = start is not None and Path(run.train.input or "").parent == start.directory
                train = run.train.model_copy(update={"input": None}) if made else run.train
                configs.append(run.config.model_copy(update={"train": train}))
        return configs

    def _runs(self, number: int) -> list[Run]:
        """The runs of a task that differ in more than their seed, as far as they are known."""
        return [self._first(number)[1]]

    def show(self) -> None:
        """Print what would be done."""
        for line in [self._shared(start) for start in self._starts() if start.stages]:
            console.result(line)
        for number in self.numbers:
            console.result(f"task {number}: {self._plan(number)}")
        for line in self.totals.lines(keeps_merged=self.keeps_merged) if self.totals else ():
            console.result(line)

    def perform(self) -> None:
        """Do the tasks; if all of the sweep are finished then, write the results and print the table.

        Raises:
            LorsError: what tasks share, the only task, or all of several failed.

        """
        for start in self._starts():
            with publish.exclusive(start.directory / self.lock, wait=True):
                self._make(start)
        failures: dict[int, str] = {}
        for number in self.numbers:
            log.info("sweep: run %d of %d: %s", number + 1, len(self.names), self.names[number])
            try:
                self._do(number)
            except LorsError as error:
                if isinstance(error, RequestError) or not self.alone:
                    raise
                log.error("sweep: %s failed: %s", self.names[number], error)
                failures[number] = str(error)
        with publish.exclusive(self.output / self.lock, wait=True):  # several tasks may be the last
            shown = self._results(failures)
        if shown is None:
            log.info("sweep: the table comes when all %d runs are finished", len(self.names))
            return
        console.result(shown)
        if len(failures) == len(self.numbers):
            raise LorsError(f"all {len(failures)} runs failed; the first: {next(iter(failures.values()))}")

    @abstractmethod
    def _starts(self) -> list[Start]:
        """What the tasks share."""

    @abstractmethod
    def _shared(self, start: Start) -> str:
        """A start, in words."""

    @abstractmethod
    def _make(self, start: Start) -> None:
        """Make a start. Several tasks come here one after another."""

    @abstractmethod
    def _first(self, number: int) -> tuple[Start | None, Run]:
        """What a task starts from, and its first run."""

    @abstractmethod
    def _trainings(self, number: int) -> int:
        """How many trainings a task has, as far as that is known."""

    @abstractmethod
    def _plan(self, number: int) -> str:
        """What a task does, in words."""

    @abstractmethod
    def _do(self, number: int) -> None:
        """Do a task."""

    @abstractmethod
    def _results(self, failures: dict[int, str]) -> str | None:
        """Write the results of all tasks; the table, or None while some are not finished."""
