"""Which samples each optimiser step takes, and which of them are this process's.

Step k takes samples k * per_step up to (k + 1) * per_step of the training order, whatever the number of processes;
their micro-batches go round the processes. So a run on two processes is the run on one, and goes on on any number.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

from torch import Tensor
from torch.utils.data import IterableDataset

from lors_cli import processes
from lors_cli.config.train import Train
from lors_cli.data.example import Example
from lors_cli.errors import LorsError, RequestError, request_error
from lors_cli.training.collate import collate


class Samples(Protocol):
    """The training order; positions count samples from the start of training."""

    ended: str  # which of several sources has ended before the training did; nothing if none has

    def starting_at(self, position: int, state: dict[str, Any] | None = None) -> Iterator[Example]:
        """The samples from `position` on; `state` is one that `state` gave for that position."""

    def state(self, position: int) -> dict[str, Any]:
        """What finds `position` again quickly, as JSON."""

    def facts(self) -> list[dict[str, Any]]:
        """What reading has found so far, of each source."""


@dataclass(frozen=True)
class Batching:
    """How many steps there are, samples in a step over all processes, and samples in a forward pass of one process.

    `before` are the samples of earlier trainings that this one goes on from: its own come after them.
    """

    steps: int
    per_step: int
    per_forward: int
    before: int = 0

    @classmethod
    def of(cls, section: Train, steps: int, before: int = 0) -> "Batching":
        """That of a section.

        Raises:
            RequestError: the processes cannot share the steps evenly.

        """
        batching = cls(steps, section.samples_per_step, section.samples_per_forward, before)
        if batching.per_step % (batching.per_forward * processes.count()):
            raise request_error(
                f"{section.key}.micro_batch_size",
                f"a size that divides the batch of {batching.per_step} samples among {processes.count()} processes",
                batching.per_forward,
                "change micro_batch_size, batch_size or the number of processes",
            )
        return batching

    @property
    def accumulation(self) -> int:
        """Micro-batches of each process in a step."""
        return self.per_step // (self.per_forward * processes.count())


def micro_batches(samples: list[Example], size: int, padding: int) -> list[dict[str, Tensor]]:
    """The micro-batches of this process, of `size`, out of `samples`, which all processes have."""
    return [collate(part, padding) for part in in_parts(samples, size)[processes.rank() :: processes.count()]]


def in_parts(samples: list[Example], size: int) -> list[list[Example]]:
    """The samples, `size` at a time."""
    return [samples[start : start + size] for start in range(0, len(samples), size)]


class Batches(IterableDataset):  # type: ignore[type-arg]
    """The micro-batches of this process of all steps from `first` on.

    Attributes:
        tokens: of the steps that were given out, over all processes.
        given: steps that were given out, those before `first` included.

    """

    def __init__(
        self, samples: Samples, batching: Batching, padding: int, first: int, state: dict[str, Any] | None
    ) -> None:
        self._samples, self._batching, self._padding = samples, batching, padding
        self._state = state
        self.given, self.tokens = first, 0

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        order = self._samples.starting_at(self._position(self.given), self._state)
        while self.given < self._batching.steps:
            try:
                step = list(islice(order, self._batching.per_step))
            except RequestError as error:  # in a stream a bad row is found when work has begun long ago
                raise LorsError(str(error)) from None
            if len(step) < self._batching.per_step:
                return
            self.given += 1
            self.tokens += sum(len(sample["input_ids"]) for sample in step)
            yield from micro_batches(step, self._batching.per_forward, self._padding)

    def state(self, step: int) -> dict[str, Any]:
        """Where the samples of the steps from `step` on are found, as JSON."""
        return self._samples.state(self._position(step))

    def _position(self, step: int) -> int:
        return self._batching.before + step * self._batching.per_step
