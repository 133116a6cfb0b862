"""The runs of a search, what several of them share, and how both are checked and performed: by `pipeline`, quietly."""

import logging
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lors_cli.config.schema import Config, missing
from lors_cli.config.train import Train
from lors_cli.run import manifest
from lors_cli.run.layout import STAGES

if TYPE_CHECKING:
    from lors_cli.run.job import Job

log = logging.getLogger(__name__)

MADE = {"prune": "pruned", "align": "aligned", "quantize": "quantized"}  # what the stages before train make


@dataclass(frozen=True)
class Run:
    """A training, and what is measured of it, by its `stages`. `values` are what distinguishes it from other runs."""

    values: dict[str, Any]
    config: Config
    stages: list[str]

    @property
    def directory(self) -> Path:
        """Where it is made."""
        return Path(self.config.output_dir)

    @property
    def train(self) -> Train:
        """How it trains."""
        return train_section(self.config)


@dataclass(frozen=True)
class Start:
    """What runs share, made by its `stages`; `made` is the last model of those, None: the config's model is trained.

    `counts`: the time of making it is needed, because it is counted in a budget.
    """

    name: str
    config: Config
    stages: list[str]
    made: str | None
    counts: bool = False

    @property
    def making(self) -> list[str]:
        """The stages that make models."""
        return [stage for stage in MADE if stage in self.stages]

    @property
    def making_only(self) -> Config:
        """The config without the stages that are the runs' own."""
        return self.config.model_copy(update=dict.fromkeys(STAGES.keys() - set(self.stages)))

    @property
    def directory(self) -> Path:
        """Where it is made."""
        return Path(self.config.output_dir)

    def before(self, run: Run, *, again: bool) -> Run:
        """The run as it can be checked: with the stages that make its model if that is missing, or is made `again`."""
        model, making = Path(run.train.input or run.config.model), self.making
        maker = next((stage for stage, name in MADE.items() if model == self.directory / name), None)
        if maker is None:
            return run
        if not again and all(manifest.read(self.directory / MADE[stage]) for stage in making):
            return run
        stages = making[: making.index(maker) + 1] if maker in making else making
        changes = {stage: getattr(self.config, stage) for stage in stages}
        changes["train"] = run.train.model_copy(update={"input": None})
        return Run(run.values, run.config.model_copy(update=changes), [*stages, *run.stages])


def train_section(config: Config) -> Train:
    """The section that runs are made with.

    Raises:
        RequestError: the config has none.

    """
    if config.train is None:
        raise missing("train")
    return config.train


def check(config: Config, stages: list[str], *, force: bool = False) -> "list[Job]":
    """Prepare the stages without doing them; gives the jobs.

    Raises:
        RequestError: something is wrong with one of them.

    """
    printed, jobs = _quietly(config, stages, force=force, dry_run=True)
    log.debug("%s", printed)
    return jobs


def perform(config: Config, stages: list[str], *, force: bool = False) -> None:
    """Run the stages; what they print is not the result of the search.

    Raises:
        LorsError: one failed.

    """
    _quietly(config, stages, force=force)


def _quietly(config: Config, stages: list[str], *, force: bool, dry_run: bool = False) -> "tuple[str, list[Job]]":
    """What the stages print, and the jobs of a dry run."""
    from lors_cli import pipeline  # with torch, for which a mistake in a file need not wait

    with redirect_stdout(StringIO()) as printed:
        jobs = pipeline.run(config, stages, force=force, dry_run=dry_run)
    return printed.getvalue().strip(), jobs
