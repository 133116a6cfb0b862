"""How long stages should take, for a dry run: their products and bytes at rates that this machine shows in a moment.

It is an estimate, with a range. The lower end is an ideal machine of these rates, which no real one is; the upper end
is `SLOWER` times that, with a slow disk and the start of each stage.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch

from lors_cli.benchmark import roofline
from lors_cli.models.device import pick_device
from lors_cli.models.effort import Effort
from lors_cli.models.load import DTYPES
from lors_cli.reporting.text import duration, plural
from lors_cli.run.job import Job

SLOWER = 6.0
START = 15.0  # seconds in which libraries, tokenizers and data are loaded
DISK = 2e9, 2e8  # bytes a second, of a fast disk and of a slow one, with the digests that are made meanwhile


@dataclass(frozen=True)
class Rates:
    """Of a machine, a second: operations in the model's dtype and in float32, and bytes of memory."""

    flops: float
    solves: float
    bandwidth: float

    def seconds(self, effort: Effort) -> tuple[float, float]:
        """The least and the most that it should take."""
        work = effort.flops / self.flops + effort.solves / self.solves + effort.streamed / self.bandwidth
        return work + effort.moved / DISK[0], SLOWER * work + effort.moved / DISK[1] + START


@lru_cache
def measured(device: str, dtype: str) -> Rates | None:
    """The rates of this machine, from a product and a copy; None of a kind of device that they are not known of.

    Of dtype: auto, which each model tells, those of the faster one of float32 and bfloat16.
    """
    place = pick_device(device)
    if place.type not in ("cpu", "cuda"):
        return None
    single = roofline.calibrate(place, torch.float32)
    own = single if dtype == "float32" else roofline.calibrate(place, DTYPES.get(dtype, torch.bfloat16))
    flops = max(own.flops, single.flops) if dtype == "auto" else own.flops
    return Rates(flops, single.flops, max(own.bandwidth, single.bandwidth))


class Forecast:
    """An estimate for stages of one sort of config, which are added one after another.

    Args:
        device: of the config.
        dtype: of the config.
        rates: measures those of the machine.

    """

    def __init__(self, device: str, dtype: str, rates: Callable[[str, str], Rates | None] = measured) -> None:
        self._rates = rates(device, dtype)
        self.least = self.most = self.kept = 0.0
        self.stages = 0

    def add(self, job: Job, count: int = 1) -> str:
        """Add a stage that is done `count` times; what it takes once, in words."""
        self.kept += job.effort.kept * count
        self.stages += count
        disk = f"{size(job.effort.kept)} on disk when it is done"
        if self._rates is None:
            return f"estimated: {disk}"
        least, most = self._rates.seconds(job.effort)
        self.least, self.most = self.least + least * count, self.most + most * count
        return f"estimated: {span(least, most)}; {disk}"

    def total(self) -> str:
        """All of them together, in words, with what the times rest on."""
        disk, stages = f"{size(self.kept)} on disk, without checkpoints", f"all {plural(self.stages, 'stage')}"
        if self._rates is None:
            return f"{stages}, estimated: {disk}"
        return (
            f"{stages}, estimated: {span(self.least, self.most)} on this machine; {disk}. From a"
            f" product and a copy measured just now, and files at {DISK[1] / 1e9:g} to {DISK[0] / 1e9:g} GB/s"
        )


def span(least: float, most: float) -> str:
    """A range of seconds, in words."""
    return f"{duration(round(least, 1))} to {duration(round(most))}"


def size(number: float) -> str:
    """Bytes, in words."""
    return f"{number / 1e9:,.2f} GB" if number >= 1e7 else f"{number / 1e6:,.2f} MB" if number >= 1e4 else "little"
