"""Checkpoints of a training: what it takes to go on, in safetensors and JSON, on any number of processes.

    adapter_model.safetensors   the adapters
    optimizer.safetensors       AdamW's moments of each of their tensors
    training.json               step of the optimiser, schedule, place in the data, tokens seen
    trainer_state.json          transformers' own: step and log

Beside them best-<step> holds the adapters of the lowest held-out loss that the latest checkpoint knows of. There are no
states of random number generators: each step seeds its own. A directory is written aside and renamed, so one that has
its name is complete.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lors_cli.adapters import Adapter
from lors_cli.artifacts import adapter_file, files, publish

CHECKPOINTS = "checkpoints"
STATE = "trainer_state.json"
TRAINING = "training.json"
OPTIMIZER = "optimizer.safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq")


def save(
    directory: Path, adapters: Mapping[str, Adapter], optimizer: Any, scheduler: Any, state: Any, facts: dict[str, Any]
) -> None:
    """Write the checkpoint `directory`, whole or not at all.

    Raises:
        OSError, LorsError: it cannot be written; nothing is left of it.

    """
    with publish.written_aside(directory) as aside:
        save_adapters(adapters, aside)
        named, moments = _named(adapters), optimizer.state
        steps = {float(moments[tensor]["step"]) for tensor in named.values()}
        adapter_file.write_tensors(
            {name: {moment: moments[tensor][moment] for moment in MOMENTS} for name, tensor in named.items()},
            aside / OPTIMIZER,
        )
        state.save_to_json(str(aside / STATE))
        found = {**facts, "optimizer_step": steps.pop(), "scheduler": scheduler.state_dict()}
        files.write_json(aside / TRAINING, found)


def restore(directory: Path, adapters: Mapping[str, Adapter], optimizer: Any, scheduler: Any) -> dict[str, Any]:
    """Bring optimiser and schedule back to where they were; the other facts of the checkpoint."""
    facts = read_facts(directory)
    moments = adapter_file.read_tensors(directory / OPTIMIZER)
    for name, tensor in _named(adapters).items():
        step = torch.tensor(facts["optimizer_step"], dtype=torch.float32, device=tensor.device)
        found = {moment: moments[name][moment].to(tensor.device) for moment in MOMENTS}
        optimizer.state[tensor] = {"step": step, **found}
    scheduler.load_state_dict(facts["scheduler"])
    for group, rate in zip(optimizer.param_groups, scheduler.get_last_lr(), strict=True):
        group["lr"] = rate
    return facts


def best(directory: Path, step: int) -> Path:
    """Where in `directory` the adapters are that were the best after `step`."""
    return directory / f"best-{step}"


def save_best(directory: Path, adapters: Mapping[str, Adapter]) -> None:
    """Write the adapters into the new `directory`, whole or not at all."""
    with publish.written_aside(directory) as aside:
        save_adapters(adapters, aside)


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


def read_facts(directory: Path) -> dict[str, Any]:
    """What is in a checkpoint apart from tensors."""
    facts: dict[str, Any] = json.loads((directory / TRAINING).read_text())
    return facts


def step_of(directory: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(directory.name.rsplit("-", 1)[1])


def numbered(directory: Path) -> dict[int, Path]:
    """The complete checkpoints in `directory` by their steps, the earliest first."""
    found = {step_of(path): path for path in directory.glob("checkpoint-*") if path.is_dir()}
    return dict(sorted(found.items()))


def last(directory: Path) -> Path | None:
    """The latest checkpoint in `directory`."""
    return next(reversed(numbered(directory).values()), None)


def keep_latest(directory: Path, count: int, best_step: int | None) -> None:
    """Remove all but the latest `count` checkpoints, and the best adapters of steps other than `best_step`."""
    bests = [path for path in directory.glob("best-*") if step_of(path) != best_step]
    for path in [*list(numbered(directory).values())[:-count], *bests]:
        shutil.rmtree(path, ignore_errors=True)


def _named(adapters: Mapping[str, Adapter]) -> dict[str, Tensor]:
    """The trained tensors by a name of their own."""
    return {f"{module}.{name}": tensor for module, a in adapters.items() for name, tensor in a.tensors().items()}
