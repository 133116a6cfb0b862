"""The runs of a grid over one config."""

import logging

from lors_cli.errors import RequestError
from lors_cli.run import manifest
from lors_cli.search import grid_results, runs
from lors_cli.search.grid import DIRECTORY, Grid
from lors_cli.search.perform import Sweep
from lors_cli.search.runs import Run, Start

log = logging.getLogger(__name__)


class GridSweep(Sweep):
    """A grid; a task is one of its runs."""

    lock = DIRECTORY

    def __init__(self, grid: Grid, task: int | None, *, force: bool) -> None:
        super().__init__(grid.output, [run.directory.name for run in grid.runs], task, force=force)
        self.grid = grid

    def _starts(self) -> list[Start]:
        return [self.grid.start] if self.grid.start else []

    def _shared(self, start: Start) -> str:
        return f"prune, shared by all runs -> {self.grid.pruned}"

    def _make(self, start: Start) -> None:
        log.info("sweep: the pruned model %s, shared by all runs", self.grid.pruned)
        if self.alone or manifest.read(self.grid.pruned) is None:
            runs.perform(start.config, start.stages, force=self.force_shared)

    def _first(self, number: int) -> tuple[Start | None, Run]:
        return self.grid.start, self.grid.runs[number]

    def _trainings(self, number: int) -> int:
        return 1

    def _plan(self, number: int) -> str:
        run = self.grid.runs[number]
        return f"{' '.join(run.stages)} -> {run.directory}"

    def _do(self, number: int) -> None:
        run = self.grid.runs[number]
        runs.perform(run.config, run.stages, force=self.force)

    def _results(self, failures: dict[int, str]) -> str | None:
        criterion = self.grid.criterion
        outcomes = [grid_results.outcome(run, criterion, failures.get(n)) for n, run in enumerate(self.grid.runs)]
        if not self.alone:
            if any(one["state"] != grid_results.FINISHED for one in outcomes):
                return None
            try:  # whether all of them were made with the settings that they have now
                GridSweep(self.grid, None, force=False).check()
            except RequestError:
                return None
        return grid_results.write(self.grid, outcomes)
