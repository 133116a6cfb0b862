"""When checkpoints are written, which stay, which adapter is the best, and what one brings back."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lors_cli.adapters.lors import LoRS
from lors_cli.config.mixture import TrainingDataset
from lors_cli.config.train import Train
from lors_cli.training import checkpoint
from lors_cli.training.checkpoint import Checkpoints


def section(**options: Any) -> Train:
    return Train(method="lors", dataset=TrainingDataset(path="x"), eval_dataset=TrainingDataset(path="y"), **options)


class State:
    """What is asked of transformers' state."""

    def __init__(self, step: int) -> None:
        self.global_step = step

    def save_to_json(self, path: str) -> None:
        Path(path).write_text("{}")


class Tuning:
    """An adapter that is trained a step at a time."""

    def __init__(self, directory: Path, **options: Any) -> None:
        torch.manual_seed(0)
        self.adapter = LoRS(nn.Linear(6, 4), rank=2, alpha=2)
        parameters = list(self.adapter.tensors().values())
        self.optimizer = torch.optim.AdamW(parameters, lr=0.1)
        self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.5)
        self.checkpoints = Checkpoints(directory, {"linear": self.adapter}, section(**options))

    def step(self) -> None:
        self.adapter(torch.ones(1, 6)).sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()

    def save(self, step: int) -> None:
        self.checkpoints.save(self.optimizer, self.scheduler, State(step), {"tokens": 10 * step, "data": {"at": step}})

    def tensors(self) -> list[torch.Tensor]:
        return [tensor.detach().clone() for tensor in self.adapter.tensors().values()]


@pytest.mark.parametrize(("steps", "save", "evaluate"), [(5, 1, 1), (200, 10, 20), (1_000_000, 1000, 1000)])
def test_a_run_has_twenty_checkpoints_and_ten_evaluations_unless_told_otherwise(
    steps: int, save: int, evaluate: int
) -> None:
    assert checkpoint.save_steps(section(), steps) == save
    assert checkpoint.eval_steps(section(), steps) == evaluate
    assert checkpoint.save_steps(section(save_steps=7), steps) == 7
    assert checkpoint.eval_steps(section(eval_steps=9), steps) == 9


def test_the_latest_stay_and_the_adapters_of_the_lowest_loss(tmp_path: Path) -> None:
    tuning = Tuning(tmp_path, keep_checkpoints=2)
    for step, loss in enumerate((3.0, 1.0, float("nan"), 2.0, 1.0), 1):
        tuning.step()
        tuning.checkpoints.consider(loss, step)
        if step == 2:
            best = tuning.tensors()
        tuning.save(step)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-4", "checkpoint-5", "best-2"}
    assert tuning.checkpoints.best == (1.0, 2)
    assert not torch.equal(tuning.tensors()[1], best[1])
    tuning.checkpoints.take_best()
    assert all(map(torch.equal, tuning.tensors(), best))


def test_the_last_adapters_are_published_where_that_is_asked_for(tmp_path: Path) -> None:
    tuning = Tuning(tmp_path, keep="last")
    tuning.checkpoints.consider(1.0, 1)
    assert tuning.checkpoints.best is None
    assert not list(tmp_path.iterdir())
    before = tuning.tensors()
    tuning.checkpoints.take_best()
    assert all(map(torch.equal, tuning.tensors(), before))


def test_a_checkpoint_brings_everything_back(tmp_path: Path) -> None:
    assert checkpoint.place(checkpoint.last(tmp_path)) == (0, None)
    tuning = Tuning(tmp_path)
    for step in range(1, 4):
        tuning.step()
        tuning.checkpoints.consider(float(step), step)
    tuning.save(3)
    other = Tuning(tmp_path)
    latest = checkpoint.last(tmp_path)
    assert latest == tmp_path / "checkpoint-3"
    assert checkpoint.place(latest) == (3, {"at": 3})
    checkpoint.load_adapters(other.checkpoints.adapters, latest)
    assert other.checkpoints.restore(latest, other.optimizer, other.scheduler)["tokens"] == 30
    assert other.checkpoints.best == (1.0, 1)
    for each in (tuning, other):  # the next step is the same to the last bit
        each.step()
    assert all(map(torch.equal, tuning.tensors(), other.tensors()))
    assert tuning.scheduler.get_last_lr() == other.scheduler.get_last_lr()
