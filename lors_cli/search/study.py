"""Turn a sweep file into configs: what runs share, the rows of the table, and the runs of each row.

<output_dir>/<start>                          what the start's runs share: pruned, aligned, and their evaluation
<output_dir>/<start>/<arm>/<values>           a run, such as learning_rate=0.001,seed=0
<output_dir>/select.jsonl, judge.jsonl        the two halves of the held-out text, if it is split

Without starts, or without values, that part of the path is left out.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

from lors_cli.config.fields import Section, named_datasets
from lors_cli.config.schema import Config
from lors_cli.data.sources import Source
from lors_cli.errors import RequestError, request_error, together
from lors_cli.run.layout import STAGES
from lors_cli.search import points
from lors_cli.search.configs import SELECT, Configs
from lors_cli.search.runs import MADE, Run, Start, train_section
from lors_cli.search.sweep_file import LENGTHS, SHARED, Settings, fits

NOT_MADE = dict.fromkeys(MADE)
MODELS, MEASURED = "eval.models", ("dense", "merged")  # what further evaluations measure unless they say it


@dataclass(frozen=True)
class Row:
    """An arm on a start, at one of the points that are all measured: a row of the table, and a task."""

    start: Start
    arm: str
    point: Settings
    grid: list[Settings]  # the points to search; a single one if there is nothing to search

    @property
    def name(self) -> str:
        """Which row it is, as a path below the output directory."""
        return "/".join(part for part in (self.start.name, self.arm, points.name(self.point)) if part)


class Study:
    """All of a sweep file at `path`; `arguments` override it, or its config, from the command line.

    Raises:
        RequestError: with every problem of the file, else of the configs that it comes to.

    """

    def __init__(self, path: Path, arguments: list[str]) -> None:
        self.configs = Configs(path, arguments)
        self.path, self.arguments = path, arguments
        self.file, self.output = self.configs.file, self.configs.output
        self.seeds: list[int | None] = list(self.file.seeds) or [None]  # the first one searches; None: the config's own
        self.left_out: dict[str, str] = {}  # why, by the names of starts and evaluations
        self._unreadable = lru_cache(_unreadable)  # of this study alone: data may come before the next one
        wanted = self.file.wanted(self.file.starts) or [""]
        self.starts = self._available(together(self._start, self._with_measures(wanted)))
        self.points = _points(self.file.every)
        self.rows = [
            self.row(start, arm, point)
            for start in (start for start in self.starts if start.name in wanted)
            for arm in self.file.wanted(self.file.arms)
            if self._trains_on(arm, start)
            for point in self.points
        ]
        if not self.rows:
            lines = [f"{name} is left out: {reason}" for name, reason in self.left_out.items()]
            got = "; ".join(["none", *lines])
            raise request_error("arms", "an arm for one of the starts", got, "correct starts or only", path)
        made = together(lambda pair: self.run(*pair), [(row, values) for row in self.rows for values in row.grid])
        self._evaluations = self._available_evaluations(made[0].config)

    def row(self, start: Start, arm: str, point: Settings) -> Row:
        """An arm on a start."""
        return Row(start, arm, point, _points(self.file.arms[arm].grid))

    def run(self, row: Row, values: Settings, seed: int | None = None, steps: int | None = None) -> Run:
        """A run of a row, for so many `steps`, else as the budget says; of no seed, that of the search.

        Raises:
            RequestError: its settings are not those of a config, or nothing compares the points of its grid.

        """
        arm, seed = self.file.arms[row.arm], self.seeds[0] if seed is None else seed
        named = {**values, **({} if seed is None else {"seed": seed}), **({"max_steps": steps} if steps else {})}
        place = self.output / row.name / points.name(named)
        changes = {**arm.set, **row.point, **values, **({} if seed is None else {"seed": seed}), **self._length(steps)}
        changes |= {**NOT_MADE, "train.input": self._model(row), "output_dir": str(place)}
        config = self.configs.of(row.start.name, changes)
        config = _measuring(config, [m for m in config.eval.models if m not in SHARED] if config.eval else [])
        train_section(config)
        run = Run(named, config, [stage for stage in STAGES if getattr(config, stage)])
        if len(row.grid) > 1:
            self._check_choice(run)
        return run

    def selecting(self, run: Run) -> Config:
        """The evaluation of the merged model by which the points of a grid are compared."""
        config = _measuring(run.config, [str(run.directory / "merged")])
        changes = {"eval.perplexity.dataset": self.configs.half(SELECT)} if self.file.choose.held_out else {}
        return self.configs.evaluation(config, SELECT, {"eval.preset": None, "eval.tasks": [], **changes})

    def evaluations(self, config: Config, models: dict[str, str]) -> dict[str, Config]:
        """The further evaluations, by name, of models that they measure, which are known by name and path."""
        made = {}
        for name, settings in self._evaluations.items():
            asked = settings.get(MODELS, MEASURED)
            if measured := [path for model, path in models.items() if model in asked]:
                others = {key: value for key, value in settings.items() if key != MODELS}
                made[name] = self.configs.evaluation(_measuring(config, measured), name, others)
        return made

    def measure_of(self, start: Start) -> Start | None:
        """The start that a budget of time is measured on, if it is another one."""
        name = self.file.starts[start.name].time_of if start.name else None
        return next((one for one in self.starts if one.name == name), None)

    def timed(self, start: Start) -> list[str]:
        """The arms that are timed on a start: those that train on it, and the measure of theirs or of other starts."""
        own = [row.arm for row in self.rows if row.start == start]
        measure = self.file.budget and self.file.budget.time_of
        needed = measure and (own or start in map(self.measure_of, self.starts))
        return list(dict.fromkeys([*([measure] if measure and needed else []), *own]))

    def _with_measures(self, names: list[str]) -> list[str]:
        """The starts of these names, and those that their time is measured on."""
        measures = {self.file.starts[name].time_of for name in names if name}
        return [name for name in self.file.starts if name in names or name in measures] or names

    def _available(self, starts: list[Start]) -> list[Start]:
        """The starts without those that are optional and whose data are missing, or those of their measure."""
        for start in starts:
            if reason := self._missing(start.name, start.config.prune, start.config.align):
                self.left_out[start.name] = reason
        for start in starts:
            if start.name and (measure := self.file.starts[start.name].time_of) in self.left_out:
                self.left_out.setdefault(start.name, f"its time is measured on {measure}, which is left out")
        return [start for start in starts if start.name not in self.left_out]

    def _available_evaluations(self, config: Config) -> dict[str, Settings]:
        """The further evaluations without those that are optional and whose data are missing."""
        for name, settings in self.file.evaluations.items() if config.eval else ():
            evaluation = self.configs.evaluation(_measuring(config, ["merged"]), name, settings)
            if reason := self._missing(name, evaluation.eval):
                self.left_out[name] = reason
        return {name: one for name, one in self.file.evaluations.items() if name not in self.left_out}

    def _missing(self, name: str, *sections: Section | None) -> str | None:
        """Why something optional cannot be done: the first data set of its sections that cannot be read."""
        for section in sections if fits(name, self.file.optional) else ():
            for _, dataset in named_datasets(section) if section else ():
                if reason := self._unreadable(dataset.source("")):
                    return reason
        return None

    def _start(self, name: str) -> Start:
        config = self.configs.of(name, {"output_dir": str(self.output / name)})
        made = [stage for stage in MADE if getattr(config, stage)]
        if config.train and config.train.input:  # the model that the runs share exists already
            made, config = [], config.model_copy(update=NOT_MADE)
        config = _measuring(config, [m for m in config.eval.models if m in SHARED] if config.eval else [])
        stages = [*made, *(["eval"] if config.eval else [])]
        measures = {start.time_of for start in self.file.starts.values()} - {None}
        counts = bool(name) and (name in measures or self.file.starts[name].time_of is not None)
        return Start(name, config, stages, MADE[made[-1]] if made else None, counts)

    def _trains_on(self, arm: str, start: Start) -> bool:
        patterns, train = self.file.arms[arm].starts, start.config.train
        if patterns is None:
            return bool(start.made or (train and train.input) or not self.file.starts)
        return fits(start.name, patterns)

    def _model(self, row: Row) -> str | None:
        """The model that a row trains."""
        asked, train = self.file.arms[row.arm].model, row.start.config.train
        if made := asked or row.start.made:
            return row.start.config.model if made == "dense" else str(row.start.directory / made)
        return (train and train.input) or row.start.config.model

    def _length(self, steps: int | None) -> Settings:
        """The settings by which a run trains for `steps`, or as long as the budget says."""
        budget = self.file.budget
        steps = steps or (budget.steps if budget else None)
        tokens = budget.tokens if budget and not steps else None
        return dict(zip(LENGTHS, (steps, tokens, None), strict=True)) if steps or tokens else {}

    def _check_choice(self, run: Run) -> None:
        config, by = run.config, self.file.choose.by
        if by == "held_out_loss" and not run.train.eval_dataset:
            expected = "train.eval_dataset, or choose.held_out"
        elif by == "perplexity" and not (config.merge and config.eval and config.eval.perplexity):
            expected = "merge: and eval.perplexity of the merged model"
        else:
            return
        raise request_error("choose.by", f"for {by} {expected}", "none", "add it to the config", self.path)


def _unreadable(source: Source) -> str | None:
    """Why the rows of a data set cannot be read, if so."""
    try:
        next(source.rows(), None)
    except RequestError as error:
        return "; ".join(problem.got for problem in error.problems)
    return None


def _points(grid: dict[str, list[Any]]) -> list[Settings]:
    """Every combination of the values; of no keys, one without any."""
    return [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]


def _measuring(config: Config, models: list[str]) -> Config:
    """The config with an evaluation of these models; of none, without an evaluation."""
    evaluation = config.eval.model_copy(update={"models": models}) if config.eval and models else None
    return config.model_copy(update={"eval": evaluation})
