"""What both forms of a sweep do alike: check everything, do one task after another, and make a table at the end."""

import logging
from abc import ABC, abstractmethod
from pathlib import Path

from lors_cli import console
from lors_cli.artifacts import publish
from lors_cli.config.load import CLI
from lors_cli.config.schema import Config
from lors_cli.errors import LorsError, RequestError, request_error, together
from lors_cli.search import runs

log = logging.getLogger(__name__)

Check = tuple[Config, list[str], bool]  # a config, its stages, and whether they are done again by force


class Sweep(ABC):
    """All tasks by their names, or only number `task`, while other processes do the others.

    Raises:
        RequestError: a task of that number does not exist.

    """

    def __init__(self, names: list[str], task: int | None, *, force: bool) -> None:
        if task is not None and not 0 <= task < len(names):
            expected = f"the number of a run, 0 to {len(names) - 1}"
            raise request_error("--task", expected, task, "--dry-run without --task lists the numbers", CLI)
        self.names, self.alone, self.force = names, task is None, force
        self.numbers = list(range(len(names))) if task is None else [task]
        self.force_shared = force and self.alone  # otherwise other tasks may be training from it already

    def check(self) -> None:
        """Prepare everything without doing it.

        Raises:
            RequestError: with the problems of all tasks.

        """
        together(lambda check: runs.check(check[0], check[1], force=check[2]), self._checks())

    def show(self) -> None:
        """Print what would be done."""
        for line in [*self._shared(), *(f"task {number}: {self._plan(number)}" for number in self.numbers)]:
            console.result(line)

    def perform(self) -> None:
        """Do the tasks; if all of the sweep are finished then, write the results and print the table.

        Raises:
            LorsError: what tasks share, the only task, or all of several failed.

        """
        self._prepare()
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
        with publish.exclusive(self._lock, wait=True):  # several tasks may be the last
            shown = self._results(failures)
        if shown is None:
            log.info("sweep: the table comes when all %d runs are finished", len(self.names))
            return
        console.result(shown)
        if len(failures) == len(self.numbers):
            raise LorsError(f"all {len(failures)} runs failed; the first: {next(iter(failures.values()))}")

    @property
    @abstractmethod
    def _lock(self) -> Path:
        """A directory that no stage writes to, since stages lock theirs."""

    @abstractmethod
    def _checks(self) -> list[Check]:
        """What can be checked before anything is there."""

    @abstractmethod
    def _shared(self) -> list[str]:
        """What several tasks share, in words."""

    @abstractmethod
    def _plan(self, number: int) -> str:
        """What a task does, in words."""

    @abstractmethod
    def _prepare(self) -> None:
        """Make what tasks share. Several tasks come here at once: the first makes it, the others wait."""

    @abstractmethod
    def _do(self, number: int) -> None:
        """Do a task."""

    @abstractmethod
    def _results(self, failures: dict[int, str]) -> str | None:
        """Write the results of all tasks; the table, or None while some are not finished."""
