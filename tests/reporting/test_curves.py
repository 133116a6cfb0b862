"""The plots of training: which curves there are, and what they are called."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from lors_cli.reporting.page import all_plots
from lors_cli.tools.report import collect
from tests.reporting.loram import make_loram
from tests.reporting.synthetic import LOSSES, make_run

TITLES = ("Loss", "Held-out perplexity over training steps", "Perplexity over training steps")
LOSS, LOGGED, MEASURED = TITLES


def plots(directory: Path, **options: Any) -> dict[str, list[str]]:
    """The texts in each plot over steps or tokens, but for the numbers of its axes, by title."""
    drawn = [(title, svg) for title, _, svg in all_plots(collect([directory], **options)) if title.startswith(TITLES)]
    texts = {title: re.findall("<text[^>]*>(.*?)</text>", svg) for title, svg in drawn}
    return {title: [text for text in shown if not re.fullmatch(r"[\d.]+", text)] for title, shown in texts.items()}


def make_lengths(directory: Path, *lengths: int, **train: Any) -> None:
    for place, steps in enumerate(lengths):
        losses = {**LOSSES, "merged": [loss - 100 * place for loss in LOSSES["merged"]]}
        make_run(directory / str(steps), train={"max_steps": steps, **train}, losses=losses)


def test_models_that_differ_by_their_steps_alone_are_connected(tmp_path: Path) -> None:
    make_lengths(tmp_path / "a", 100, 200, 400)
    make_lengths(tmp_path / "b", 100, 200, learning_rate=1e-3)
    make_lengths(tmp_path / "c", 400, rank=4)
    assert plots(tmp_path)[MEASURED] == [
        *("optimiser steps", "perplexity"),
        *("dense", "wanda", "wanda + lors r=16 learning_rate=2e-05", "wanda + lors r=16 learning_rate=0.001"),
    ]


def test_models_that_differ_by_their_ratio_alone_are_connected(tmp_path: Path) -> None:
    for ratio in (0.65, 0.75):
        make_loram(tmp_path / str(ratio), ratio=ratio, align=False)
    (shown,) = (svg for title, _, svg in all_plots(collect([tmp_path])) if title == "Perplexity over the prune ratio")
    labels = [text for text in re.findall("<text[^>]*>(.*?)</text>", shown) if not re.fullmatch(r"[\d.]+", text)]
    assert labels == [
        *("share of the heads and channels that was removed", "perplexity", "dense", "structured_random"),
        *(f"structured_random + lora r=8 on {place}" for place in ("the original", "the pruned model")),
    ]


@pytest.mark.parametrize("change", [{"schedule": "linear"}, {"data": {"dataset": "other"}}, {"seed": 1}])
def test_models_that_differ_by_more_are_not(tmp_path: Path, change: dict[str, Any]) -> None:
    make_lengths(tmp_path / "a", 100)
    make_lengths(tmp_path / "b", 200, **change)
    assert MEASURED not in plots(tmp_path)


def test_nor_are_models_of_other_prunings_or_measured_otherwise(tmp_path: Path) -> None:
    make_lengths(tmp_path / "a", 100)
    make_run(tmp_path / "b", train={"max_steps": 200}, prune={"seed": 1})
    make_run(tmp_path / "c", train={"max_steps": 200}, settings={"dtype": "bfloat16"})
    assert not plots(tmp_path).keys() & {MEASURED, f"{MEASURED} [a]", f"{MEASURED} [b]"}


def test_over_seeds_their_means_are(tmp_path: Path) -> None:
    for seed in range(2):
        make_lengths(tmp_path / str(seed), 100, 200, seed=seed)
    assert plots(tmp_path, over_seeds=True)[MEASURED][2:] == ["dense", "wanda", "wanda + lors r=16, 2 seeds"]


def test_held_out_losses_are_drawn_once_for_each_training(tmp_path: Path) -> None:
    run = make_loram(tmp_path / "run", align=False)
    log = [
        {"step": step, "tokens": 10 * step, "eval_loss": loss}
        for step, loss in ((0, 800.0), (1, math.nan), (2, 2.0), (3, 1.5))
    ]
    (run / "adapter/training_log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log) + "{")
    shown = plots(tmp_path)
    label = "structured_random 65% + lora r=8 on the original"
    assert shown == {
        LOSS: ["tokens seen", "loss, nats per token", label],
        LOGGED: ["optimiser steps", "perplexity", label],
    }
