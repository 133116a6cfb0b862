"""The estimate of a dry run: what is counted is what the shapes say, and the range is that of the rates."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import Result

from lors_cli import pipeline
from lors_cli.benchmark import roofline
from lors_cli.config.load import load
from lors_cli.models import effort, linears
from lors_cli.models import load as models
from lors_cli.tools import forecast
from lors_cli.tools.forecast import DISK, SLOWER, START, Forecast, Rates

Lors = Callable[..., Result]
WriteConfig = Callable[..., Path]
RATES = Rates(flops=1e9, solves=1e8, bandwidth=1e10)


def test_each_stage_counts_what_its_shapes_say(
    write_config: WriteConfig, dense: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forecast, "measured", lambda *_: RATES)
    config = load(write_config(), ["prune.method=sparsegpt"])
    assert config.prune
    assert config.prune.calibration
    assert config.train
    jobs = {job.stage: job for job in pipeline.run(config, ["prune", "train", "merge", "eval"], dry_run=True)}
    skeleton = models.skeleton(dense)
    size, shapes = models.weight_bytes(skeleton, config.dtype), linears.shapes(skeleton)
    inside = sum(rows * columns for rows, columns in shapes.values())
    head = skeleton.config.vocab_size * skeleton.config.hidden_size
    windows = config.prune.calibration.samples * config.prune.calibration.sequence_length
    made = jobs["prune"].effort
    assert made.flops == 2 * 2 * windows * inside
    by_hand = sum(2 * windows * c**2 + 2 * c**3 + 2 * r * c**2 for r, c in shapes.values())
    assert made.solves == by_hand
    assert (made.moved, made.kept) == (4 * size, size)
    trains = jobs["train"].trains
    assert trains
    tokens = trains.steps * config.train.samples_per_step * config.train.sequence_length
    assert jobs["train"].effort.flops == 2 * 2 * tokens * (inside + head)
    assert jobs["train"].effort.kept == 4 * trains.numbers
    assert (jobs["merge"].effort.moved, jobs["merge"].effort.kept) == (5 * size, size)
    assert jobs["eval"].effort.flops == 3 * 2 * 4 * 32 * (inside + head), "three models, four windows of 32 tokens"
    assert effort.calibrated(
        skeleton, "float32", None, dict.fromkeys(shapes, 0.5), hessian=False, fits=True
    ).solves == (pytest.approx(sum(r * (c / 2) ** 3 / 3 for r, c in shapes.values())))
    every = Forecast("cpu", "float32", lambda *_: RATES)
    one = jobs["prune"].effort
    work = one.flops / 1e9 + one.solves / 1e8
    said = every.add(jobs["prune"], 3)
    assert every.least == pytest.approx(3 * (work + one.moved / DISK[0]))
    assert every.most == pytest.approx(3 * (SLOWER * work + one.moved / DISK[1] + START))
    assert (
        said
        == f"estimated: {forecast.span(every.least / 3, every.most / 3)}; {forecast.size(size)} on disk when it is done"
    )
    assert every.total().startswith("all 3 stages, estimated: ")
    assert "estimated: " in Forecast("mps", "auto", lambda *_: None).add(jobs["merge"])


def test_the_rates_of_this_machine_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    calibrate = roofline.calibrate

    def noted(device: torch.device, dtype: torch.dtype) -> Any:
        calls.append(dtype)
        return calibrate(device, dtype)

    monkeypatch.setattr(roofline, "calibrate", noted)
    forecast.measured.cache_clear()
    rates = forecast.measured("cpu", "bfloat16")
    assert forecast.measured("cpu", "bfloat16") is rates
    assert calls == [torch.float32, torch.bfloat16]
    assert rates
    assert all(math.isfinite(rate) and rate > 0 for rate in vars(rates).values())


def test_a_sweep_reads_its_data_once_and_says_what_all_of_it_takes(
    lors: Lors, write_config: WriteConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lors_cli.data import instructions
    from lors_cli.evaluation.judged import Text

    calls: list[str] = []
    read, samples = instructions.examples, Text.samples

    def noted(kind: str, make: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            calls.append(kind)
            return make(*given, **named)

        return call

    monkeypatch.setattr(instructions, "examples", noted("train", read))
    monkeypatch.setattr(Text, "samples", noted("eval", samples))
    shown = lors("sweep", write_config(), "train.rank=2,4,8", "--dry-run").stdout
    assert sorted(calls) == ["eval", "train"]
    assert "all 10 stages, estimated: " in shown
