"""What a sweep will take, as far as it is known before it begins: bytes on disk, and the least time of trainings.

The time is that of the roofline of `lors bench`, for models of Llama's kind and methods that it knows: an ideal
machine, which no real one reaches. What is not counted is said.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from lors_cli.adapters import METHODS
from lors_cli.benchmark import roofline
from lors_cli.benchmark.variants import VARIANTS
from lors_cli.config.train import Train
from lors_cli.models import load
from lors_cli.reporting.text import duration, plural
from lors_cli.run.job import Job
from lors_cli.search.runs import MADE
from lors_cli.tools.forecast import Forecast, size

CARDS = ("a100", "h100")


@dataclass
class Totals:
    """Sums over the tasks of a sweep, in bytes and, by card, in seconds.

    `largest` is the largest merged model; `trainings` are all, and `unknown` those of them that have no time.
    """

    shared: int = 0
    adapters: int = 0
    merged: int = 0
    largest: int = 0
    trainings: int = 0
    unknown: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(CARDS, 0.0))
    here: Forecast | None = None

    def add_shared(self, jobs: list[Job]) -> None:
        """The checked jobs of a start, done once. Structured pruning and quantising leave less than is counted here."""
        self.shared += sum(_dense_bytes(jobs[0]) for job in jobs if job.stage in MADE)
        for job in jobs:
            self._add_time(job, 1)
            self._add_here(job, 1)

    def add_runs(self, jobs: list[Job], count: int, shared: list[str]) -> None:
        """So many runs, of which `jobs` are those of the first; it has the `shared` stages only to be checked."""
        own = {job.stage: job for job in jobs if job.stage not in shared}
        training = own["train"]
        self.adapters += 4 * training.trains.numbers * count if training.trains else 0
        self._add_time(training, count)
        for job in own.values():
            self._add_here(job, count)
        if "merge" in own:
            small = training.trains.weight_bytes if training.trains else 0
            merged = _dense_bytes(own["recover"]) if "recover" in own else small
            self.merged += merged * count
            self.largest = max(self.largest, merged)

    def lines(self, *, keeps_merged: bool) -> list[str]:
        """In words."""
        merged = self.merged if keeps_merged else self.largest
        kept = "merged models" if keeps_merged else "a merged model, once for each task that runs at a time"
        hours = " or ".join(
            f"{duration(round(seconds, 1))} on one {card.upper()}" for card, seconds in self.seconds.items()
        )
        without = f", and the trainings whose time is not known ({self.unknown})" if self.unknown else ""
        return [
            f"disk: at most {size(self.shared + self.adapters + merged)}: {size(self.shared)} that runs share,"
            f" {size(self.adapters)} of adapters, {size(merged)} of {kept}; checkpoints come on top",
            *([self.here.total()] if self.here else []),
            f"time: at least {hours} for {plural(self.trainings, 'training')} of full samples, by the roofline of lors"
            f" bench; not counted: pruning, evaluation{without}",
        ]

    def _add_here(self, job: Job, count: int) -> None:
        """Estimate what a job takes on this machine."""
        self.here = self.here or Forecast(job.config.device, job.config.dtype)
        self.here.add(job, count)

    def _add_time(self, job: Job, count: int) -> None:
        if job.trains is None:
            return
        section: Train = getattr(job.config, job.stage)
        self.trainings += count
        try:
            name, shape = _variant(section), roofline.Shape.of(job.trains.shape)
        except (StopIteration, AttributeError):
            self.unknown += count
            return
        width = 4 if (section.dtype or job.config.dtype) in ("float32", "float16") else 2
        batch, recompute = section.samples_per_forward, section.gradient_checkpointing
        setting = roofline.Setting("model", section.sequence_length, batch, section.rank, width, recompute)
        forwards = count * job.trains.steps * section.samples_per_step / batch
        for card in CARDS:
            self.seconds[card] += forwards * roofline.seconds(name, shape, setting, roofline.KNOWN[card])


def _variant(section: Train) -> str:
    """The name by which the roofline knows how a section trains; StopIteration if it does not."""
    way = section.formulation or next(iter(METHODS[section.method].formulations))
    asked = section.option("adapter_checkpointing") or False
    wanted = (section.method, way, asked)
    return next(
        name
        for name, one in VARIANTS.items()
        if (one.method, one.formulation, one.options.get("adapter_checkpointing", False)) == wanted
        and one.base == "dense"
        and not one.cached
    )


def _dense_bytes(job: Job) -> int:
    """The bytes of the model that a job reads as its `model`, or changes, as numbers in the config's dtype."""
    path = job.inputs.get("model") or job.inputs.get("pruned")
    return _bytes(path, job.config.dtype, job.config.trust_remote_code) if path else 0


@lru_cache
def _bytes(directory: Path, dtype: str, trust_remote_code: bool) -> int:
    return load.weight_bytes(load.skeleton(directory, trust_remote_code=trust_remote_code, quantized=True), dtype)
