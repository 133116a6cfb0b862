"""The runs of a grid over one config."""

import logging
from pathlib import Path
from typing import Any

from lors_cli.artifacts import publish
from lors_cli.config.schema import Config
from lors_cli.errors import RequestError, together
from lors_cli.run import manifest
from lors_cli.search import grid_results, runs
from lors_cli.search.grid import Grid, Run
from lors_cli.search.perform import Check, Sweep

log = logging.getLogger(__name__)


class GridSweep(Sweep):
    """A grid; a task is one of its runs."""

    def __init__(self, grid: Grid, task: int | None, *, force: bool) -> None:
        super().__init__([run.name for run in grid.runs], task, force=force)
        self.grid = grid

    @property
    def _lock(self) -> Path:
        return self.grid.directory

    def _checks(self) -> list[Check]:
        return self._of([self.grid.runs[number] for number in self.numbers], force=self.force)

    def _shared(self) -> list[str]:
        return [f"prune, shared by all runs -> {self.grid.pruned}"] if self.grid.base else []

    def _plan(self, number: int) -> str:
        run = self.grid.runs[number]
        return f"{' '.join(run.stages)} -> {run.config.output_dir}"

    def _prepare(self) -> None:
        if self.grid.base is None:
            return
        log.info("sweep: the pruned model %s, shared by all runs", self.grid.pruned)
        with publish.exclusive(self._lock, wait=True):
            if self.alone or manifest.read(self.grid.pruned) is None:
                runs.perform(self.grid.base, ["prune"], force=self.force_shared)

    def _do(self, number: int) -> None:
        run = self.grid.runs[number]
        runs.perform(run.config, run.stages, force=self.force)

    def _results(self, failures: dict[int, str]) -> str | None:
        outcomes = [
            grid_results.outcome(run, self.grid.criterion, failures.get(number))
            for number, run in enumerate(self.grid.runs)
        ]
        return grid_results.write(self.grid, outcomes) if self.alone or self._complete(outcomes) else None

    def _of(self, chosen: list[Run], *, force: bool) -> list[Check]:
        checks = [(self.grid.base, ["prune"], force and self.alone)] if self.grid.base else []
        return checks + [(self._with_model(run.config), run.stages, force) for run in chosen]

    def _with_model(self, config: Config) -> Config:
        """The config with a model that is there: before the shared one is, the one that it will be made from."""
        base, train = self.grid.base, config.train
        if base is None or base.prune is None or train is None or train.input != str(self.grid.pruned):
            return config
        if manifest.read(self.grid.pruned) and not self.force_shared:
            return config
        source = base.prune.input or base.model
        return config.model_copy(update={"train": train.model_copy(update={"input": source})})

    def _complete(self, outcomes: list[dict[str, Any]]) -> bool:
        """Whether every run of the grid is finished, with the settings that it has now."""
        if any(one["state"] != grid_results.FINISHED for one in outcomes):
            return False
        try:
            together(lambda check: runs.check(check[0], check[1]), self._of(self.grid.runs, force=False))
        except RequestError:
            return False
        return True
