"""What a sweep will take, against sums by hand."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from lors_cli.benchmark import roofline
from lors_cli.config.load import configured
from lors_cli.run.facts import Facts
from lors_cli.run.job import Job, Trains
from lors_cli.search.totals import Totals
from tests import pico


def job(stage: str, dense: Path, **changes: Any) -> Job:
    content = pico.config(str(dense), "run")
    content["train"] |= {"method": "spp", "formulation": "columns", "micro_batch_size": 2, **changes}
    shape = AutoConfig.from_pretrained(dense)
    trains = Trains(numbers=1000, weight_bytes=50_000, steps=4, shape=shape) if stage == "train" else None
    config = configured(content, Path("some.yaml"), {})
    return Job(stage, config, {"model": dense}, {}, lambda partial: Facts(), trains=trains)


def test_disk_and_time_are_sums_over_the_runs(dense: Path) -> None:
    totals = Totals()
    size = 4 * sum(tensor.numel() for tensor in _parameters(dense))
    totals.add_shared([job("prune", dense), job("eval", dense)])
    made = [job("prune", dense), job("train", dense), job("merge", dense), job("eval", dense)]
    totals.add_runs(made, 3, ["prune"])
    totals.add_runs([job("train", dense), job("recover", dense), job("merge", dense)], 1, [])
    assert (totals.shared, totals.adapters, totals.trainings) == (size, 4 * 1000 * 4, 4)
    assert (totals.merged, totals.largest) == (
        3 * 50_000 + size,
        max(size, 50_000),
    )  # what was recovered is the original
    setting = roofline.Setting("model", 32, 2, 4, 4)
    once = roofline.seconds("spp-columns", roofline.Shape.of(made[1].trains.shape), setting, roofline.KNOWN["h100"])  # type: ignore[union-attr]
    assert totals.seconds["h100"] == pytest.approx(4 * 4 * 2 * once)  # runs, steps, micro-batches of 2 in a batch of 4
    kept, dropped = (totals.lines(keeps_merged=keeps)[0] for keeps in (True, False))
    assert "of merged models" in kept
    assert "once for each task" in dropped


def test_a_training_without_a_known_time_is_said(dense: Path) -> None:
    totals = Totals()
    totals.add_runs([job("train", dense, method="full", formulation=None, rank=None)], 2, [])
    assert (totals.unknown, totals.seconds["a100"]) == (2, 0)
    assert "the trainings whose time is not known (2)" in totals.lines(keeps_merged=True)[-1]


def _parameters(dense: Path) -> Any:
    from lors_cli.models import load

    return load.skeleton(dense).parameters()
