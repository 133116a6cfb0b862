"""What happens to a long training: kills, signals, full disks, bad numbers, streams that end, the best adapter."""

import errno
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import Result

from lors_cli.artifacts import adapter_file
from lors_cli.training import checkpoint
from tests.training import processes
from tests.training.outcome import CHECKPOINTS, adapter, checkpoints, log, losses, manifest, same, unbroken

Lors = Callable[..., Result]
WriteConfig = Callable[..., Path]
Jsonl = Callable[..., Path]

ROWS = [{"text": " ".join(str(i * k) for k in range(i % 11 + 3))} for i in range(1, 81)]
KILLS = 10


def test_killed_ten_times_it_ends_with_the_same_bits(lors: Lors, write_config: WriteConfig, tmp_path: Path) -> None:
    config = write_config(
        train__method="lora",
        train__dropout=0.1,
        train__max_steps=200,
        train__save_steps=3,
        train__eval_dataset={"path": "python-topics", "split": "test", "limit": 1},
        train__eval_steps=40,
    )
    lors("prune", config)
    lors("train", config)
    wanted, lines = adapter(tmp_path), losses(tmp_path)
    (tmp_path / "run/adapter").rename(tmp_path / "unbroken")
    moments = random.Random(0)
    killed, start = 0, 0
    while killed < KILLS:
        (child,) = processes.start(1, config)
        goal = min(start + moments.randrange(1, 30), 195)
        processes.until(lambda goal=goal: max(checkpoints(tmp_path), default=0) >= goal)  # type: ignore[misc]
        time.sleep(moments.uniform(0, 0.1))  # wherever that is: in a step, a checkpoint, an evaluation
        os.kill(child, signal.SIGKILL)
        assert processes.wait([child]) == [-signal.SIGKILL]
        assert not (tmp_path / "run/adapter").exists()
        killed, start = killed + 1, max(checkpoints(tmp_path))
    (tmp_path / CHECKPOINTS / ".checkpoint-999.partial").mkdir()  # a kill during a save
    assert "resuming from checkpoint-" in lors("train", config).stderr
    assert same(adapter(tmp_path), wanted)
    assert losses(tmp_path) == lines


def test_sigterm_saves_and_the_same_command_goes_on(lors: Lors, write_config: WriteConfig, tmp_path: Path) -> None:
    config = write_config(train__max_steps=60, train__save_steps=1000)
    lors("prune", config)
    wanted = unbroken(lors, tmp_path, config)
    (child,) = processes.start(1, config, log=tmp_path / "messages")
    written = tmp_path / "run/.adapter.partial/training_log.jsonl"
    processes.until(lambda: written.exists() and written.read_text().count('"loss"') > 2)
    os.kill(child, signal.SIGTERM)
    assert processes.wait([child]) == [130]
    assert "asked to stop" in (tmp_path / "messages.0").read_text()
    (saved,) = checkpoints(tmp_path)
    assert f"resuming from checkpoint-{saved}" in lors("train", config).stderr
    assert same(adapter(tmp_path), wanted)
    steps = [line for line in log(tmp_path) if "loss" in line]
    assert [line["epoch"] for line in steps] == [line["step"] / 60 for line in steps]  # it does not begin again
    begun = [line for line in steps if "numerics" in line]
    assert [line["step"] for line in begun] == [1, saved + 1]
    assert begun[-1]["numerics"] == {**manifest(tmp_path)["numerics"], **manifest(tmp_path)["trainer"]}


@pytest.mark.parametrize("unwritten", ["checkpoint-6", "best-6"])
def test_a_full_disk_keeps_the_checkpoint_and_the_best_adapter_before(
    lors: Lors, write_config: WriteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unwritten: str
) -> None:
    config = write_config(
        train__eval_dataset={"path": "python-topics", "split": "test", "limit": 1},
        train__eval_steps=2,
        train__max_steps=8,
        train__save_steps=2,
    )
    lors("prune", config)
    wanted = unbroken(lors, tmp_path, config)
    with monkeypatch.context() as patch:
        save = checkpoint.save_adapters

        def full(adapters: Any, directory: Path) -> None:
            save(adapters, directory)
            if unwritten in directory.name:
                raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(checkpoint, "save_adapters", full)
        result = lors("train", config, status=1)
    assert "cannot write" in result.stderr
    assert "GB free" in result.stderr
    places = {path.name for path in (tmp_path / CHECKPOINTS).iterdir()}
    assert places - {"best-6"} == {"checkpoint-2", "best-2", "checkpoint-4", "best-4"}
    assert unwritten not in places
    assert "resuming from checkpoint-4" in lors("train", config).stderr
    assert same(adapter(tmp_path), wanted)


def test_what_was_stopped_after_its_last_step_is_only_published(
    lors: Lors, write_config: WriteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(train__eval_dataset={"path": "python-topics", "split": "test", "limit": 1})
    lors("prune", config)
    with monkeypatch.context() as patch:
        patch.setattr(adapter_file, "save", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
        lors("train", config, status=130)
    assert checkpoints(tmp_path)[-1] == 4
    assert "resuming from checkpoint-4" in lors("train", config).stderr
    facts = manifest(tmp_path)
    assert (facts["steps"], len(losses(tmp_path)), facts["kept_step"]) == (4, 4, 4)
    published = adapter(tmp_path)
    lors("train", config, "--force")
    assert same(adapter(tmp_path), published)


@pytest.mark.parametrize("method", ["lors", "spp"])
def test_values_that_are_not_finite_stop_it_with_step_module_and_checkpoint(
    lors: Lors, write_config: WriteConfig, tmp_path: Path, method: str
) -> None:
    config = write_config(
        train__method=method,
        train__learning_rate=1000,
        train__weight_decay=1000,  # products of two linears then overflow in the third step
        train__alpha=1e6,
        train__max_grad_norm=0,
        train__save_steps=1,
        train__gradient_checkpointing=method == "spp",
    )
    lors("prune", config)
    result = lors("train", config, status=1)
    for word in ("step 3: the output of model.layers.0.self_attn.", "is NaN or infinite", "checkpoint-2 is kept"):
        assert word in result.stderr, result.stderr
    assert not (tmp_path / "run/adapter").exists()
    assert checkpoints(tmp_path) == [1, 2]


def test_a_gradient_that_is_not_finite_is_named(
    lors: Lors, write_config: WriteConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The forward is finite: only the backward of one linear overflows."""
    from lors_cli.adapters.lora import LoRA

    forward = LoRA.forward

    def spoilt(self: LoRA, x: torch.Tensor) -> torch.Tensor:
        y = forward(self, x)
        if self.shape == (64, 32) and y.requires_grad:  # gate and up
            y.register_hook(lambda grad: grad * float("inf"))
        return y

    monkeypatch.setattr(LoRA, "forward", spoilt)
    config = write_config(train__method="lora")
    lors("prune", config)
    result = lors("train", config, status=1)
    assert "step 1: the gradient of lora_A of model.layers.1.mlp.up_proj is NaN" in result.stderr
    assert "there was no checkpoint yet" in result.stderr


def test_a_stream_that_ends_early_is_told_and_can_be_repeated(
    lors: Lors, write_config: WriteConfig, jsonl: Jsonl, tmp_path: Path
) -> None:
    (tmp_path / "shards").mkdir()
    for part in range(3):
        jsonl(ROWS[part::3], f"shards/{part}.jsonl")
    config = write_config(
        train__dataset={"path": str(tmp_path / "shards"), "streaming": True},
        train__packing=True,
        train__sequence_length=64,
        train__max_steps=...,
        train__max_tokens=20 * 4 * 64,
    )
    lors("prune", config)
    result = lors("train", config, status=1)
    assert "the data ended after step" in result.stderr
    assert "of 20" in result.stderr
    (ended,) = checkpoints(tmp_path)[-1:]
    again = lors("train", config, "train.repeat=true")
    assert f"resuming from checkpoint-{ended}" in again.stderr
    facts = manifest(tmp_path)
    assert facts["steps"] == 20
    assert 0.9 * 20 * 4 * 64 < facts["tokens"] <= 20 * 4 * 64
    assert facts["data"]["train.dataset"]["documents"] > 80
    broken = adapter(tmp_path)
    lors("train", config, "train.repeat=true", "--force")
    assert same(adapter(tmp_path), broken)


def test_a_token_budget_beyond_the_data_is_refused_before_the_work(
    lors: Lors, write_config: WriteConfig, jsonl: Jsonl, tmp_path: Path
) -> None:
    config = write_config(train__dataset=str(jsonl(ROWS)), train__max_steps=..., train__max_tokens=10**6)
    result = lors("run", config, "--dry-run", status=2)
    for word in ("train.max_tokens", "at most the", "train.repeat: true"):
        assert word in result.stderr
    plan = lors("run", config, "--dry-run", "train.max_tokens=1000").stdout
    assert "8 steps" in plan  # of 4 samples of 32 tokens
    assert "activations" in plan


def test_the_adapter_of_the_lowest_held_out_loss_is_kept(
    lors: Lors, write_config: WriteConfig, jsonl: Jsonl, tmp_path: Path
) -> None:
    held_out = {"path": "python-topics", "split": "test", "limit": 1}
    # learning a few rows by heart soon harms what was held out
    config = write_config(
        train__dataset=str(jsonl(ROWS[:8])),
        train__eval_dataset=held_out,
        train__eval_steps=3,
        train__max_steps=16,
        train__learning_rate=3e-2,
    )
    lors("prune", config)
    lors("train", config)
    facts, best = manifest(tmp_path), adapter(tmp_path)
    evaluated = {line["step"]: line["eval_loss"] for line in log(tmp_path) if "eval_loss" in line}
    assert list(evaluated) == [3, 6, 9, 12, 15, 16]
    assert facts["eval_loss"] == min(evaluated.values())
    assert facts["kept_step"] == min(evaluated, key=lambda step: evaluated[step]) < 16
    lors("train", config, "--force", "train.keep=last")
    assert manifest(tmp_path)["kept_step"] == 16
    assert not same(adapter(tmp_path), best)


def test_a_teacher_is_learnt_from_and_left_alone(
    lors: Lors, write_config: WriteConfig, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    teacher = make_model(tmp_path / "teacher", initializer_range=0.3)  # with opinions, unlike the pico model
    config = write_config(
        train__distill={"teacher": str(teacher), "weight": 1.0, "temperature": 2.0},
        train__dataset={"path": "python-topics", "limit": 1},
        train__batch_size=8,
        train__max_steps=12,
    )
    lors("prune", config)
    before = {path.name: path.read_bytes() for path in teacher.iterdir()}
    lors("train", config)
    learnt = losses(tmp_path)
    assert min(learnt[6:]) < 0.97 * learnt[0]
    assert {path.name: path.read_bytes() for path in teacher.iterdir()} == before
    held_out = "train.eval_dataset={path: python-topics, split: test, limit: 1}"
    measured = []
    for distill in ([], ["train.distill=null"]):  # what is held out measures the data's loss, not the teacher's
        lors("train", config, held_out, "train.learning_rate=1e-30", "train.max_steps=1", *distill, "--force")
        measured.append(manifest(tmp_path)["eval_loss"])
    assert measured[0] == pytest.approx(measured[1], rel=1e-6)
    other = make_model(tmp_path / "other", vocab_size=400)
    result = lors("train", config, f"train.distill.teacher={other}", "--force", status=2)
    for word in ("train.distill.teacher", "vocabulary of 384", "400"):
        assert word in result.stderr


def test_rows_that_are_too_long_are_counted_or_refused(
    lors: Lors, write_config: WriteConfig, jsonl: Jsonl, tmp_path: Path
) -> None:
    rows = [{"instruction": "Count.", "input": "", "output": "1 2 3 " * times} for times in (1, 2, 60)]
    config = write_config(train__dataset=str(jsonl(rows)), train__sequence_length=200, train__max_steps=1)
    lors("prune", config)
    lors("train", config)
    assert manifest(tmp_path)["data"]["train.dataset"]["truncated"] == 1
    result = lors("train", config, "train.overlong=refuse", "--force", status=2)
    for word in ("rows of at most 200 tokens", "row 3", "train.overlong: truncate"):
        assert word in result.stderr
