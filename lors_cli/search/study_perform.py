"""The rows of a study: each searches its grid, then trains its best point with every seed."""

import logging
import math
from pathlib import Path
from typing import Any

from lors_cli import console
from lors_cli.artifacts import publish
from lors_cli.config.schema import Config
from lors_cli.errors import LorsError, together
from lors_cli.search import budget, outcome, results, runs, study_results
from lors_cli.search.outcome import Outcome
from lors_cli.search.perform import Sweep
from lors_cli.search.runs import Run, Start
from lors_cli.search.study import Row, Study
from lors_cli.search.sweep_file import SHARED, Settings

log = logging.getLogger(__name__)

Point = dict[str, Any]  # "values" of a point of a grid, and their "value", None where it diverged


class MissingError(LorsError):
    """Another task has not finished a run yet."""


class StudySweep(Sweep):
    """A study; a task is one of its rows."""

    lock = ".sweep"

    def __init__(self, study: Study, task: int | None, *, force: bool) -> None:
        super().__init__(study.output, [row.name for row in study.rows], task, force=force)
        self.study = study
        self.keeps_merged = study.file.keep_models
        self._fresh: set[Path] = set()  # what --force has made again already

    def perform(self) -> None:
        with publish.exclusive(self.output / self.lock, wait=True):
            self.study.configs.split_held_out()
        self.study = Study(self.study.path, self.study.arguments)  # it reads the halves from now on
        super().perform()

    def show(self) -> None:
        super().show()
        if self.study.left_out:
            console.result(results.listed("Left out:", self.study.left_out))

    def check(self) -> None:
        super().check()
        together(
            lambda config: runs.check(config, ["eval"], force=self.force), self._further(super()._read_by_runs()[0])
        )

    def _read_by_runs(self) -> list[Config]:
        configs = super()._read_by_runs()
        return [*configs, *self._further(configs[0])]

    def _further(self, config: Config) -> list[Config]:
        """The further evaluations, of the original model: whatever they measure, they read the same data."""
        measured = dict.fromkeys([*SHARED, "tuned", "merged"], "dense")
        return list(self.study.evaluations(config, measured).values())

    def _shared(self, start: Start) -> str:
        return f"{' '.join(start.stages)}, shared by all rows of it -> {start.directory}"

    def _first(self, number: int) -> tuple[Start | None, Run]:
        row = self.study.rows[number]
        return row.start, self.study.run(row, row.grid[0])

    def _runs(self, number: int) -> list[Run]:
        row = self.study.rows[number]
        return [self.study.run(row, values) for values in row.grid]

    def _trainings(self, number: int) -> int:
        grid, seeds = len(self.study.rows[number].grid), len(self.study.seeds)
        again = seeds if self.study.file.budget and self.study.file.budget.time_of else 0
        return grid + seeds - 1 + again

    def _plan(self, number: int) -> str:
        row, seeds = self.study.rows[number], len(self.study.seeds)
        search = f"search of {len(row.grid)} points, then " if len(row.grid) > 1 else ""
        return f"{search}{f'{seeds} seeds' if seeds > 1 else 'one run'} -> {self.study.output / row.name}"

    def _do(self, number: int) -> None:
        self._row(self.study.rows[number], make=True)

    def _results(self, failures: dict[int, str]) -> str | None:
        if any(start.config.eval and not outcome.models(start.config) for start in self.study.starts):
            return None
        try:
            rows = [self._row(row, make=False) for n, row in enumerate(self.study.rows) if n not in failures]
        except MissingError:
            return None
        return study_results.write(self.study, rows, {self.names[n]: reason for n, reason in failures.items()})

    def _starts(self) -> list[Start]:
        """The starts of the tasks' rows; those that have no row belong to the first task."""
        own = [self.study.rows[number].start for number in self.numbers]
        own += [measure for start in own if (measure := self.study.measure_of(start))]
        others = [row.start for row in self.study.rows if row.start not in own]
        first = 0 in self.numbers
        return [start for start in self.study.starts if start in own or (first and start not in others)]

    def _make(self, start: Start) -> None:
        new = budget.is_new(start)
        if start.stages:
            log.info("sweep: %s, shared by all rows of it: %s", " ".join(start.stages), start.directory)
            runs.perform(start.config, start.stages, force=self.force_shared)
        for evaluation in outcome.start_evaluations(self.study, start).values():
            runs.perform(evaluation, ["eval"], force=self.force_shared)
        if self.study.file.budget and self.study.file.budget.timed:
            budget.measure(self.study, start, was_new=new)

    def _row(self, row: Row, *, make: bool) -> dict[str, Any]:
        """The results of a row; `make` makes what is missing."""
        limits, measured_on = self.study.file.budget, self.study.measure_of(row.start)
        times = budget.read(row.start) if limits and limits.timed else {}
        measure = budget.read(measured_on) if measured_on else None
        if limits and limits.timed:
            for start, known, needed in ((row.start, times, row.arm), (measured_on, measure, budget.MAKING)):
                if start and needed not in (known or {}):
                    raise MissingError(f"{start.directory} is not finished")
        limited = budget.steps_in_time(limits, times, row.arm, measure) if limits and times else None
        steps = limited if limits and limits.seconds else None
        points = self._search(row, steps, make=make)
        best = _best(points)
        result = {"row": row, "search": points, "values": best["values"], "edge": _is_edge(points, best)}
        result["runs"] = [self._judged(row, best["values"], seed, steps, make=make) for seed in self.study.seeds]
        if times:
            result["seconds_a_step"] = times[row.arm]["step"]
            result["seconds_before"] = sum(times[name]["before"] for name in (row.arm, budget.MAKING) if name in times)
        if limits and limits.time_of:
            again = [self._judged(row, best["values"], seed, limited, make=make) for seed in self.study.seeds]
            result["in_time"] = {"steps": limited, "runs": again}
        return result

    def _search(self, row: Row, steps: int | None, *, make: bool) -> list[Point]:
        """The number of every point of the grid with the first seed, None where it diverged; longer where it may be."""
        grid, extensions = list(row.grid), self.study.file.choose.extend
        if len(grid) == 1:
            return [{"values": grid[0], "value": None}]
        while True:
            points = []
            for values in grid:
                run = self.study.run(row, values, steps=steps)
                points.append({"values": values, "value": self._outcome(run, "value", make=make).get("value")})
            best = _best(points)
            if not extensions or not _is_edge(points, best):
                return points
            extensions -= 1
            grid = _extended(grid, at_end=best is points[-1])

    def _judged(self, row: Row, values: Settings, seed: int | None, steps: int | None, *, make: bool) -> Outcome:
        run = self.study.run(row, values, seed, steps)
        known = self._outcome(run, "models", make=make)
        further = outcome.further(outcome.run_evaluations(self.study, run))
        seen = outcome.tokens_seen(Path(run.train.input or run.config.model))
        return {"values": run.values, "output_dir": str(run.directory), **known, **further, "seen_before": seen}

    def _outcome(self, run: Run, wanted: str, *, make: bool) -> Outcome:
        """What has been measured of a run, with what is `wanted` of it unless it diverged."""
        again = self.force and make and run.directory not in self._fresh
        known = {} if again else outcome.read(self.study, run)
        if wanted in known or "diverged" in known:
            return known
        if not make:
            raise MissingError(f"{run.directory} is not finished")
        log.info("sweep: %s", run.directory)
        self._fresh.add(run.directory)
        return outcome.measure(self.study, run, wanted, force=again)


def _best(points: list[Point]) -> Point:
    """The point of the lowest number, the first if all diverged."""
    return min(points, key=lambda point: math.inf if point["value"] is None else float(point["value"]))


def _is_edge(points: list[Point], best: Point) -> bool:
    """Whether the best of several points is the first or the last along a single axis of numbers."""
    axis = [one for point in points for one in point["values"].values()]
    numbers = all(isinstance(one, int | float) for one in axis) and len(axis) == len(points) > 1
    return numbers and axis == sorted(axis) and best["values"] in (points[0]["values"], points[-1]["values"])


def _extended(grid: list[Settings], *, at_end: bool) -> list[Settings]:
    """The grid of a single axis with one more value, as far from its edge as that from its neighbour, as a factor."""
    edge, neighbour = (grid[-1], grid[-2]) if at_end else (grid[0], grid[1])
    further = {key: float(f"{value * value / neighbour[key]:.6g}") for key, value in edge.items()}
    return [*grid, further] if at_end else [further, *grid]
