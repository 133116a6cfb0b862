"""Checkpoints of a training: when one is written, what is in it, how many are kept, and which adapter is the best.

    checkpoint-<step>/adapter_model.safetensors   the adapters
    checkpoint-<step>/optimizer.safetensors       AdamW's moments of each of their tensors
    checkpoint-<step>/training.json               step of the optimiser, schedule, place in the data, tokens seen, best
    checkpoint-<step>/trainer_state.json          transformers' own: step and log
    best-<step>/adapter_model.safetensors         the adapters of the lowest held-out loss

They are enough to go on with on any number of processes. There are no states of random number generators: each step
seeds its own. A directory is written aside and renamed, so one that has its name is complete.
"""

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lors_cli import processes
from lors_cli.adapters.base import Adapter
from lors_cli.artifacts import adapter_file, files, publish
from lors_cli.config.train import Train

# How many there are in a run where the config leaves it open; a run of a million steps is still saved every thousand.
CHECKPOINTS_PER_RUN = 20
EVALUATIONS_PER_RUN = 10
MOST_STEPS_BETWEEN = 1000

CHECKPOINTS = "checkpoints"
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
        adapters: by the names of their linears.
        section: says how many of the latest stay, and whether the best adapters are kept.

    Attributes:
        best: the lowest held-out loss so far and its step, if the adapters of that are to be kept.

    """

    def __init__(self, directory: Path, adapters: Mapping[str, Adapter], section: Train) -> None:
        self.directory, self.adapters = directory, adapters
        self._count, self._keep_best = section.keep_checkpoints, section.keep == "best"
        self.best: tuple[float, int] | None = None

    def save(self, optimizer: Any, scheduler: Any, state: Any, facts: dict[str, Any]) -> None:
        """Write the checkpoint of the trainer's `state`, whole or not at all, and remove what it makes needless.

        Raises:
            OSError, LorsError: it cannot be written; nothing is left of it.

        """
        target = self.directory / f"checkpoint-{state.global_step}"
        if target.exists():  # a run that was continued and did no step
            return
        with publish.written_aside(target) as aside:
            save_adapters(self.adapters, aside)
            named, moments = self._tensors(), optimizer.state
            steps = {float(moments[tensor]["step"]) for tensor in named.values()}
            adapter_file.write_tensors(
                {name: {moment: moments[tensor][moment] for moment in MOMENTS} for name, tensor in named.items()},
                aside / OPTIMIZER,
            )
            state.save_to_json(str(aside / STATE))
            own = {"best": self.best, "optimizer_step": steps.pop(), "scheduler": scheduler.state_dict()}
            files.write_json(aside / TRAINING, {**facts, **own})
        best_step = self.best[1] if self.best else None
        bests = [path for path in self.directory.glob("best-*") if _step(path) != best_step]
        for path in [*list(numbered(self.directory).values())[: -self._count], *bests]:
            shutil.rmtree(path, ignore_errors=True)

    def restore(self, checkpoint: Path, optimizer: Any, scheduler: Any) -> dict[str, Any]:
        """Bring optimiser and schedule back to where they were; the facts that `save` was given."""
        facts = _facts(checkpoint)
        saved = adapter_file.read_tensors(checkpoint / OPTIMIZER)
        for name, tensor in self._tensors().items():
            step = torch.tensor(facts["optimizer_step"], dtype=torch.float32, device=tensor.device)
            moments = {moment: saved[name][moment].to(tensor.device) for moment in MOMENTS}
            optimizer.state[tensor] = {"step": step, **moments}
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

    def take_best(self) -> None:
        """Give the adapters the values of the lowest held-out loss, if they are kept."""
        if self.best and processes.rank() == 0:  # it wrote them and will publish them; the others may be ahead of that
            load_adapters(self.adapters, self._best(self.best[1]))

    def _best(self, step: int) -> Path:
        return self.directory / f"best-{step}"

    def _tensors(self) -> dict[str, Tensor]:
        """The trained tensors by a name of their own."""
        return {f"{module}.{name}": t for module, a in self.adapters.items() for name, t in a.tensors().items()}


def save_adapters(adapters: Mapping[str, Adapter], directory: Path) -> None:
    """Write the adapters' tensors into `directory`."""
    modules = {module: adapter.tensors() for module, adapter in adapters.items()}
    adapter_file.write_tensors(modules, directory / adapter_file.WEIGHTS)


@torch.no_grad()
def load_adapters(adapters: Mapping[str, Adapter], directory: Path) -> None:
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


def numbered(directory: Path) -> dict[int, Path]:
    """The complete checkpoints in `directory` by the steps after which they were written, the earliest first."""
    return dict(sorted((_step(path), path) for path in directory.glob("checkpoint-*") if path.is_dir()))


def last(directory: Path) -> Path | None:
    """The latest checkpoint in `directory`."""
    return next(reversed(numbered(directory).values()), None)


def _step(path: Path) -> int:
    return int(path.name.rsplit("-", 1)[1])
