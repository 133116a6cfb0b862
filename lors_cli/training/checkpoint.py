"""Checkpoints of a training: when one is written, what is in it, how many are kept, and which adapter is the best.

    checkpoint-<step>/adapter_model.safetensors   the adapters
    checkpoint-<step>/optimizer.safetensors       AdamW's moments of each of their tensors
    checkpoint-<step>/training.json               step of the optimiser, schedule, place in the data, tokens seen, best
    checkpoint-<step>/trainer_state.json          transformers' own: step and log
    best-<step>/adapter_model.safetensors         the adapters of the lowest held-out loss

They are enough to go on with on any number of processes. There are no states of random number generators: each step
seeds its own. A directory is written aside and renamed, so one that has its name is complete; it is sealed, and used
only as it was written. A damaged one is put aside, and the training goes on from the latest that is whole.
"""

import json
import logging
import math
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lors_cli import processes
from lors_cli.adapters.vectors import Trained
from lors_cli.artifacts import adapter_file, files, publish, sealed
from lors_cli.config.train import Train
from lors_cli.errors import LorsError

log = logging.getLogger(__name__)

# How many there are in a run where the config leaves it open; a run of a million steps is still saved every thousand.
CHECKPOINTS_PER_RUN = 20
EVALUATIONS_PER_RUN = 10
MOST_STEPS_BETWEEN = 1000

CHECKPOINTS = "checkpoints"
CHECKPOINT, BEST = "checkpoint", "best"
STATE = "trainer_state.json"
TRAINING = "training.json"
OPTIMIZER = "optimizer.safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq")


def save_steps(section: Train, steps: int) -> int:
    """Optimiser steps between checkpoints, in a training of so many `steps`."""
    return section.save_steps or _spread(steps, CHECKPOINTS_PER_RUN)


def eval_steps(section: Train, steps: int) -> int:
    """Optimiser steps between held-out losses, after each of which the adapters may be the best so far."""
    return section.eval_steps or _spread(steps, EVALUATIONS_PER_RUN)


def _spread(steps: int, count: int) -> int:
    return min(max(steps // count, 1), MOST_STEPS_BETWEEN)


class Checkpoints:
    """The checkpoints of one training. The first of several processes writes them.

    Args:
        directory: where they are.
        adapters: by the names of their linears; with vectors that are trained beside them, by their own.
        section: says how many of the latest stay, and whether the best adapters are kept.
        owner: the run that they belong to; those of another are not used.

    Attributes:
        best: the lowest held-out loss so far and its step, if the adapters of that are to be kept.

    """

    def __init__(self, directory: Path, adapters: Mapping[str, Trained], section: Train, owner: str = "") -> None:
        self.directory, self.adapters = directory, adapters
        self._owner, self._key = owner, section.key
        self._count, self._keep_best = section.keep_checkpoints, section.keep == "best"
        self.best: tuple[float, int] | None = None

    def save(self, optimizer: Any, scheduler: Any, state: Any, facts: dict[str, Any]) -> None:
        """Write the checkpoint of the trainer's `state`, whole or not at all, and remove what it makes needless.

        Raises:
            OSError, LorsError: it cannot be written; nothing is left of it.

        """
        target = self.directory / f"{CHECKPOINT}-{state.global_step}"
        if target.exists():  # a run that was continued and did no step
            return
        with publish.written_aside(target) as aside:
            save_adapters(self.adapters, aside)
            step = self.save_optimizer(optimizer, aside)
            state.save_to_json(str(aside / STATE))
            own = {"best": self.best, "optimizer_step": step, "scheduler": scheduler.state_dict()}
            files.write_json(aside / TRAINING, {**facts, **own})
            sealed.seal(aside, self._owner, target.name)
        kept, bests = numbered(self.directory), numbered(self.directory, BEST)
        needless = [kept.pop(step) for step in list(kept)[: -self._count]]
        # of a checkpoint the best adapters are the latest before it, as each of them was better than those before
        needed = {max((best for best in bests if best <= step), default=None) for step in kept}
        for path in [*needless, *(bests[step] for step in bests.keys() - needed)]:
            shutil.rmtree(path, ignore_errors=True)

    def save_optimizer(self, optimizer: Any, directory: Path) -> float:
        """Write AdamW's moments into `directory`; its step."""
        named, state = self._tensors(), optimizer.state
        moments = {name: {moment: state[tensor][moment] for moment in MOMENTS} for name, tensor in named.items()}
        adapter_file.write_tensors(moments, directory / OPTIMIZER)
        return {float(state[tensor]["step"]) for tensor in named.values()}.pop()

    def load_optimizer(self, optimizer: Any, directory: Path, step: float) -> None:
        """Give AdamW the moments in `directory`, and its step."""
        saved = adapter_file.read_tensors(directory / OPTIMIZER)
        for name, tensor in self._tensors().items():
            moments = {moment: saved[name][moment].to(tensor.device) for moment in MOMENTS}
            optimizer.state[tensor] = {"step": torch.tensor(step, dtype=torch.float32, device=tensor.device), **moments}

    def latest(self) -> Path | None:
        """The latest checkpoint that is whole; of several processes the first looks. Damaged ones are put aside."""
        found: Path | None = processes.agree(self._latest() if processes.rank() == 0 else None)
        return found

    def _latest(self) -> Path | None:
        found, damaged = None, False
        for step, checkpoint in reversed(numbered(self.directory).items()):
            if not (reason := self._damage(checkpoint)):
                found = step, checkpoint
                break
            damaged, kept = True, sealed.put_aside(checkpoint).name
            log.warning("%s: %s cannot be used: %s. It is kept as %s", self._key, checkpoint.name, reason, kept)
        at, place = found or (0, None)
        if damaged:
            where = place.name if place else "the beginning"
            log.warning("%s: the training starts again from %s", self._key, where)
        for step, best in numbered(self.directory, BEST).items():
            if sealed.damage(best, self._owner):
                sealed.put_aside(best)
            elif step > at:  # it will be written again
                shutil.rmtree(best)
        return place

    def _damage(self, checkpoint: Path) -> str | None:
        """Why a checkpoint must not be used, the best adapters that it names included."""
        if reason := sealed.damage(checkpoint, self._owner):
            return reason
        best = _facts(checkpoint)["best"]
        reason = sealed.damage(self._best(best[1]), self._owner) if best else None
        return reason and f"of {self._best(best[1]).name}, the best adapters before it, {reason}"

    def restore(self, checkpoint: Path, optimizer: Any, scheduler: Any) -> dict[str, Any]:
        """Bring optimiser and schedule back to where they were; the facts that `save` was given."""
        facts = _facts(checkpoint)
        self.load_optimizer(optimizer, checkpoint, facts["optimizer_step"])
        scheduler.load_state_dict(facts["scheduler"])
        for group, rate in zip(optimizer.param_groups, scheduler.get_last_lr(), strict=True):
            group["lr"] = rate
        self.best = tuple(facts["best"]) if facts["best"] else None
        return facts

    def consider(self, loss: float, step: int) -> None:
        """Keep the adapters as they are now if their held-out `loss` is the lowest so far."""
        if self._keep_best and math.isfinite(loss) and (self.best is None or loss < self.best[0]):
            self.best = (loss, step)
            if processes.rank() == 0:
                with publish.written_aside(self._best(step)) as aside:
                    save_adapters(self.adapters, aside)
                    sealed.seal(aside, self._owner, self._best(step).name)

    def take_best(self) -> None:
        """Give the adapters the values of the lowest held-out loss, if they are kept.

        Raises:
            LorsError: they are not as they were written.

        """
        if self.best and processes.rank() == 0:  # it wrote them and will publish them; the others may be ahead of that
            best = self._best(self.best[1])
            if reason := sealed.damage(best, self._owner):
                remedy = "the same command goes on from the latest checkpoint before it"
                raise LorsError(f"{best}, the adapters of the lowest held-out loss, cannot be used: {reason}; {remedy}")
            load_adapters(self.adapters, best)

    def _best(self, step: int) -> Path:
        return self.directory / f"{BEST}-{step}"

    def _tensors(self) -> dict[str, Tensor]:
        """The trained tensors by a name of their own."""
        return {
            f"{module}.{name}": t
            for module, a in self.adapters.items()
            for name, t in a.tensors().items()
            if t.requires_grad
        }


def save_adapters(adapters: Mapping[str, Trained], directory: Path) -> None:
    """Write the adapters' tensors into `directory`."""
    modules = {module: adapter.tensors() for module, adapter in adapters.items()}
    adapter_file.write_tensors(modules, directory / adapter_file.WEIGHTS)


@torch.no_grad()
def load_adapters(adapters: Mapping[str, Trained], directory: Path) -> None:
    """Give the adapters the tensors in `directory`."""
    saved = adapter_file.read_tensors(directory / adapter_file.WEIGHTS)
    for module, adapter in adapters.items():
        for name, tensor in adapter.tensors().items():
            tensor.copy_(saved[module][name])


def place(checkpoint: Path | None) -> tuple[int, dict[str, Any] | None]:
    """The step after which a checkpoint was written, and where the data go on; the beginning where there is none."""
    return (_step(checkpoint), _facts(checkpoint)["data"]) if checkpoint else (0, None)


def _facts(checkpoint: Path) -> dict[str, Any]:
    """What is in a checkpoint apart from tensors."""
    facts: dict[str, Any] = json.loads((checkpoint / TRAINING).read_text())
    return facts


def numbered(directory: Path, kind: str = CHECKPOINT) -> dict[int, Path]:
    """The directories ``<kind>-<step>`` in `directory` by their steps, the earliest first."""
    found = [path for path in directory.glob(f"{kind}-*") if re.fullmatch(f"{kind}-(0|[1-9][0-9]*)", path.name)]
    return dict(sorted((_step(path), path) for path in found))


def last(directory: Path) -> Path | None:
    """The latest checkpoint in `directory`, whole or not."""
    return next(reversed(numbered(directory).values()), None)


def _step(path: Path) -> int:
    return int(path.name.rsplit("-", 1)[1])
