"""A training goes on from what is whole and from nothing else, and its result and its facts tell no difference."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from lors_cli.search.grid_results import COST, NOT_SHOWN
from lors_cli.training import checkpoint
from lors_cli.training.trainer import AdapterTrainer
from tests.training.outcome import CHECKPOINTS, log, manifest

Lors = Callable[..., Result]
WriteConfig = Callable[..., Path]

OPTIONS = {
    "train__max_steps": 8,
    "train__save_steps": 2,
    "train__keep_checkpoints": 3,
    "train__logging_steps": 3,
    "train__eval_dataset": {"path": "python-topics", "split": "test", "limit": 1},
    "train__eval_steps": 2,
    "train__micro_batch_size": 2,
}


def facts(tmp_path: Path) -> dict[str, Any]:
    """The manifest without when the training was done, for how long, and in how large a process."""
    return {key: value for key, value in manifest(tmp_path).items() if key not in (*COST, *NOT_SHOWN)}


def lines(tmp_path: Path) -> list[dict[str, Any]]:
    """The log without seconds and without what each start says of itself."""
    kept = [{k: v for k, v in line.items() if "second" not in k and "runtime" not in k} for line in log(tmp_path)]
    return [{key: value for key, value in line.items() if key != "numerics"} for line in kept]


def weights(tmp_path: Path) -> bytes:
    return (tmp_path / "run/adapter/adapter_model.safetensors").read_bytes()


def stop_in(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """End the training in this step, as a kill would."""
    original = AdapterTrainer.training_step

    def stopped(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step + 1 == step:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(AdapterTrainer, "training_step", stopped)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 2
    path.write_bytes(content)


def damage(checkpoints: Path, how: str) -> None:
    newest = checkpoints / "checkpoint-6"
    kind, _, name = how.partition(" ")
    if kind == "flipped":
        flip(newest / name)
    elif kind == "copied":
        shutil.copytree(checkpoints / "checkpoint-4", checkpoints / "checkpoint-7")
    elif kind == "step":  # an edit that is still JSON
        state = json.loads((newest / checkpoint.STATE).read_text())
        (newest / checkpoint.STATE).write_text(json.dumps({**state, "global_step": 5}))
    elif kind == "unsealed":  # as older versions wrote them
        for path in checkpoints.glob("*/digests.json"):
            path.unlink()
    elif kind == "best":
        shutil.rmtree(max(checkpoints.glob("best-*")))


DAMAGES = {
    "none": ("6", "resuming from checkpoint-6"),
    "flipped adapter_model.safetensors": ("4", "adapter_model.safetensors does not have the bytes"),
    "step": ("4", "trainer_state.json does not have the bytes"),
    "copied": ("6", "checkpoint-7 cannot be used"),
    "best": ("4", "of best-6, the best adapters before it, it is missing"),
    "unsealed": ("", "carries no digest"),
}


def test_damaged_checkpoints_are_told_and_passed_over(lors: Lors, write_config: WriteConfig, tmp_path: Path) -> None:
    config = write_config(**OPTIONS)
    lors("prune", config)
    lors("train", config)
    wanted, wanted_facts, wanted_lines = weights(tmp_path), facts(tmp_path), lines(tmp_path)
    shutil.rmtree(tmp_path / "run/adapter")
    with pytest.MonkeyPatch.context() as patch:
        stop_in(8, patch)
        lors("train", config, status=130)
    places = tmp_path / CHECKPOINTS
    assert [*checkpoint.numbered(places)] == [2, 4, 6]
    places.parents[1].rename(tmp_path / "left")
    for how, (step, said) in DAMAGES.items():
        shutil.copytree(tmp_path / "left", places.parents[1])
        damage(places, how)
        result = lors("train", config).stderr
        assert said in result, (how, result)
        assert ("resuming from checkpoint-" in result) == bool(step), how
        assert f"resuming from checkpoint-{step}" in result or not step, how
        assert weights(tmp_path) == wanted, how
        assert facts(tmp_path) == wanted_facts, how
        assert lines(tmp_path) == wanted_lines, how
        shutil.rmtree(tmp_path / "run/adapter")
