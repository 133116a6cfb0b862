"""``lors sweep``: every combination of a grid of settings, one run after another; the best config is written out.

A run is an ordinary experiment in its own directory, so the same command skips what is finished and goes on with what
was interrupted.
"""

import logging
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from lors_cli import console, processes
from lors_cli.artifacts import publish
from lors_cli.config.schema import Config
from lors_cli.errors import LorsError, Problem, RequestError, request_error
from lors_cli.run import manifest
from lors_cli.tools import sweep_grid, sweep_results
from lors_cli.tools.sweep_grid import Grid, Run

log = logging.getLogger(__name__)

# pipeline.run, which is above the stages
Pipeline = Callable[..., None]


def sweep(
    path: Path,
    arguments: list[str],
    pipeline: Pipeline,
    *,
    task: int | None = None,
    force: bool = False,
    dry_run: bool = False,
) -> None:
    """Run the grid that `arguments` span over the config file `path`, or only its run number `task`; print the table.

    Raises:
        RequestError: something is wrong with the grid or with one of its runs; nothing has begun.
        LorsError: the shared pruning, or every run, failed.

    """
    if processes.count() > 1:
        got = f"{processes.count()} processes"
        raise request_error("command", "one process", got, "start it without torchrun; --task shares runs out")
    grid = sweep_grid.build(path, arguments)
    runs = grid.runs
    if task is not None:
        if not 0 <= task < len(runs):
            expected = f"the number of a run, 0 to {len(runs) - 1}"
            raise request_error("--task", expected, task, "--dry-run without it lists them", sweep_grid.CLI)
        runs = [runs[task]]
    chosen = _Sweep(grid, runs, pipeline, alone=task is None, force=force)
    chosen.check()
    if dry_run:
        chosen.show()
    else:
        chosen.perform()


class _Sweep:
    """Some runs of a grid; `alone` if they are all of it, so that no other process works on the rest."""

    def __init__(self, grid: Grid, runs: list[Run], pipeline: Pipeline, *, alone: bool, force: bool) -> None:
        self.grid, self.runs, self.alone, self.force = grid, runs, alone, force
        self._pipeline = pipeline

    def check(self) -> None:
        """Prepare everything without doing it.

        Raises:
            RequestError: with the problems of all runs.

        """
        self._check(self.runs, force=self.force)

    def show(self) -> None:
        """Print what would be done."""
        if self.grid.base:
            console.result(f"prune, shared by all runs -> {self.grid.pruned}")
        for number, run in enumerate(self.grid.runs):
            if run in self.runs:
                console.result(f"task {number}: {' '.join(run.stages)} -> {run.config.output_dir}")

    def perform(self) -> None:
        """Do the runs; if all of the grid are there then, write the results and print the table.

        Raises:
            LorsError: the shared pruning, the only run, or all of several failed.

        """
        self._prune()
        failures = {run.name: reason for run in self.runs if (reason := self._run(run))}
        outcomes = [sweep_results.outcome(run, self.grid.criterion, failures.get(run.name)) for run in self.grid.runs]
        if not self.alone and not self._complete(outcomes):
            log.info("sweep: the table comes when all %d runs are finished", len(outcomes))
            return
        with publish.exclusive(self.grid.directory, wait=True):  # several tasks may be the last
            shown = sweep_results.write(self.grid, outcomes)
        console.result(shown)
        if len(failures) == len(self.runs):
            raise LorsError(f"all {len(failures)} runs failed; the first: {failures[self.runs[0].name]}")

    def _check(self, runs: list[Run], *, force: bool) -> None:
        base = self.grid.base
        checks = [(base, ["prune"], force and self.alone)] if base else []
        checks += [(self._with_model(run.config), run.stages, force) for run in runs]
        problems: list[Problem] = []
        for config, stages, forced in checks:
            try:
                plan = self._quietly(config, stages, force=forced, dry_run=True)
                log.debug("%s", plan)
            except RequestError as error:
                problems += error.problems
        if problems:
            raise RequestError(*dict.fromkeys(problems))

    def _with_model(self, config: Config) -> Config:
        """The config with a model that is there: before the shared one is, the one that it will be made from."""
        base, train = self.grid.base, config.train
        if base is None or base.prune is None or train is None or train.input != str(self.grid.pruned):
            return config
        if manifest.read(self.grid.pruned) and not (self.force and self.alone):
            return config
        source = base.prune.input or base.model
        return config.model_copy(update={"train": train.model_copy(update={"input": source})})

    def _prune(self) -> None:
        """Make the model that the runs share. Several tasks come here at once: the first makes it, the others wait."""
        if self.grid.base is None:
            return
        log.info("sweep: the pruned model %s, shared by all runs", self.grid.pruned)
        with publish.exclusive(self.grid.directory, wait=True):
            # where others may be training from it already, it is made only if it is missing
            if self.alone or manifest.read(self.grid.pruned) is None:
                self._quietly(self.grid.base, ["prune"], force=self.force and self.alone)

    def _run(self, run: Run) -> str | None:
        """Do a run; why it failed, if it did."""
        number = self.grid.runs.index(run) + 1
        log.info("sweep: run %d of %d: %s", number, len(self.grid.runs), run.name)
        try:
            self._quietly(run.config, run.stages, force=self.force)
        except LorsError as error:
            if isinstance(error, RequestError) or not self.alone:
                raise
            log.error("sweep: %s failed: %s", run.name, error)
            return str(error)
        return None

    def _quietly(self, config: Config, stages: list[str], **options: bool) -> str:
        """Run stages; what they print is not the sweep's result."""
        with redirect_stdout(StringIO()) as shown:
            self._pipeline(config, stages, **options)
        return shown.getvalue().strip()

    def _complete(self, outcomes: list[dict[str, Any]]) -> bool:
        """Whether every run of the grid is finished, with the settings that it has now."""
        if any(one["state"] != sweep_results.FINISHED for one in outcomes):
            return False
        try:
            self._check(self.grid.runs, force=False)
        except RequestError:
            return False
        return True
