"""The schedule of the learning rate against its formula."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import get_scheduler

from lors_cli.config.mixture import TrainingDataset
from lors_cli.config.train import Train
from lors_cli.training.arguments import arguments
from lors_cli.training.batches import Batching

STEPS = 20
FALL = {
    "cosine": lambda passed: (1 + math.cos(math.pi * passed)) / 2,
    "linear": lambda passed: 1 - passed,
    "constant": lambda passed: 1,
}


@pytest.mark.parametrize(("warmup", "rising"), [(0, 0), (4, 4), (0.25, 5)])
@pytest.mark.parametrize("schedule", FALL)
def test_the_learning_rate_rises_while_warming_up_and_then_falls(
    tmp_path: Path, schedule: Any, warmup: float, rising: int
) -> None:
    dataset = TrainingDataset(path="x")
    section = Train(method="lors", dataset=dataset, schedule=schedule, warmup=warmup, learning_rate=0.5, batch_size=4)
    settings = arguments(
        section, Batching.of(section, STEPS), torch.device("cpu"), 0, tmp_path / "c", tmp_path, held_out=False
    )
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=settings.learning_rate)
    scheduler = get_scheduler(settings.lr_scheduler_type, optimizer, settings.get_warmup_steps(STEPS), STEPS)
    for step in range(STEPS):
        wanted = step / rising if step < rising else FALL[schedule]((step - rising) / (STEPS - rising))
        assert scheduler.get_last_lr() == pytest.approx([0.5 * wanted])
        optimizer.step()
        scheduler.step()
