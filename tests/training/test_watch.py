"""What accompanies a training."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lors_cli.errors import DivergedError
from lors_cli.stopping import Stop
from lors_cli.training.watch import Watch


@pytest.mark.parametrize("logs", [{"eval_loss": float("nan")}, {"loss": float("inf")}])
def test_a_logged_loss_that_is_not_finite_ends_the_training(tmp_path: Path, logs: dict[str, float]) -> None:
    trainer: Any = SimpleNamespace(tokens=7, in_force={}, started=0.0)
    said: list[tuple[str, int]] = []
    watch = Watch(
        trainer, tmp_path / "log.jsonl", "train", lambda *words, steps: said.append((words[0], steps)), Stop("stops")
    )
    state: Any = SimpleNamespace(global_step=3, log_history=[{"step": 3, "loss": 1.0}])
    none: Any = None
    watch.on_log(none, state, none, logs={"loss": 1.0})
    assert json.loads((tmp_path / "log.jsonl").read_text())["loss"] == 1.0
    assert said == [("loss 1", 0)], "the line at the bottom has it at once"
    with pytest.raises(DivergedError, match=f"step 3: {next(iter(logs))} is {next(iter(logs.values()))}"):
        watch.on_log(none, state, none, logs=logs)
    assert "Infinity" not in (tmp_path / "log.jsonl").read_text()
