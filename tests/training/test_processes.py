"""Training shared by two gloo processes, through the command's own pipeline: as one process would have done it."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import Result

from lors_cli.errors import RequestError
from lors_cli.models.device import pick_device
from tests.training import processes
from tests.training.outcome import CHECKPOINTS, losses, manifest

Lors = Callable[..., Result]
WriteConfig = Callable[..., Path]

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this build of PyTorch has no torch.distributed"
)


@pytest.fixture
def config(lors: Lors, write_config: WriteConfig, tmp_path: Path) -> Path:
    """Twenty steps of packed rows of different lengths, with a held-out loss."""
    rows = [{"text": " ".join(f"{i * k}" for k in range(i % 17 + 2))} for i in range(1, 60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = write_config(
        train__dataset={"path": str(tmp_path / "rows.jsonl")},
        train__eval_dataset={"path": "python-topics", "split": "test", "limit": 1},
        train__packing=True,
        train__sequence_length=64,
        train__micro_batch_size=1,
        train__max_steps=20,
        train__save_steps=2,
        train__eval_steps=10,
    )
    lors("prune", path)
    return path


@pytest.mark.parametrize(
    ("parallel", "options"),
    [
        ("ddp", ["train.method=lors"]),
        ("ddp", ["train.method=spp", "train.gradient_checkpointing=true", "train.also=[norms]"]),
        ("fsdp", ["train.method=lors", "train.base=packed", "train.also=[norms]"]),
        ("fsdp", ["train.method=lors", "train.gradient_checkpointing=true", "train.distill.teacher=dense"]),
        ("fsdp", ["train.method=sqft", "train.chunked_loss=false"]),
        ("by accelerate", ["train.method=lors"]),
    ],
)
def test_two_processes_reach_the_losses_of_one(
    lors: Lors,
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    parallel: str,
    options: list[str],
) -> None:
    options = [*options, "train.max_steps=10", "train.eval_steps=5"]
    lors("train", config, *options)
    alone, held_out, before = losses(tmp_path), losses(tmp_path, "eval_loss"), manifest(tmp_path)
    (tmp_path / "run/adapter").rename(tmp_path / "alone")
    if parallel == "by accelerate":  # whose default leaves weights out of all processes but the first
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
        monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
        processes.train(2, config, *options)
    else:
        processes.train(2, config, *options, f"train.parallel={parallel}")
    assert manifest(tmp_path)["processes"] == 2
    assert manifest(tmp_path)["tokens"] == before["tokens"]
    assert losses(tmp_path) == pytest.approx(alone, rel=1e-5)
    assert losses(tmp_path, "eval_loss") == pytest.approx(held_out, rel=1e-5)
    lors("merge", config, *options)
    lors(
        "merge",
        config,
        *options,
        f"merge.adapter={tmp_path}/alone",
        f"output_dir={tmp_path}/other",
        f"merge.input={tmp_path}/run/pruned",
    )
    pruned, merged, wanted = (
        load_file(tmp_path / name / "model.safetensors") for name in ("run/pruned", "run/merged", "other/merged")
    )
    for name in (name for name in pruned if "proj" in name):
        assert not merged[name][pruned[name] == 0].any()
        # the merged weights, because a singular vector of the start may have the other sign
        torch.testing.assert_close(merged[name], wanted[name], rtol=1e-3, atol=1e-4)
        assert (merged[name] - pruned[name]).abs().max() > 1e-3


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_run_that_loses_a_process_goes_on_alone(lors: Lors, config: Path, tmp_path: Path, parallel: str) -> None:
    streaming = ["train.dataset.streaming=true", "train.repeat=true"] if parallel == "ddp" else []
    lors("train", config, *streaming)
    alone = losses(tmp_path)
    (tmp_path / "run/adapter").rename(tmp_path / "alone")
    checkpoints = tmp_path / CHECKPOINTS
    for goal in (4, 8):  # the second pair resumes what the first left
        children = processes.start(2, config, [f"train.parallel={parallel}", *streaming], log=tmp_path / "messages")
        processes.until(lambda goal=goal: (checkpoints / f"checkpoint-{goal}").exists())  # type: ignore[misc]
        os.kill(children[1], signal.SIGKILL)
        assert processes.wait(children) == [1, -signal.SIGKILL]
        assert "another process of this run has gone" in (tmp_path / "messages.0").read_text()
        assert not (tmp_path / "run/adapter").exists()
    assert "resuming from checkpoint-" in (tmp_path / "messages.0").read_text()
    assert "resuming from checkpoint-" in lors("train", config, *streaming).stderr
    assert losses(tmp_path) == pytest.approx(alone, rel=1e-5)


def test_a_signal_to_one_process_stops_all_at_the_same_step(lors: Lors, config: Path, tmp_path: Path) -> None:
    lors("train", config)
    alone = losses(tmp_path)
    (tmp_path / "run/adapter").rename(tmp_path / "alone")
    checkpoints = tmp_path / CHECKPOINTS
    overrides = ["train.save_steps=100", "train.keep_checkpoints=1"]
    children = processes.start(2, config, overrides, log=tmp_path / "messages")
    partial = tmp_path / "run/.adapter.partial/training_log.jsonl"
    processes.until(lambda: partial.exists() and partial.read_text().count('"loss"') > 2)
    os.kill(children[1], signal.SIGTERM)
    assert processes.wait(children) == [130, 130]
    (saved,) = checkpoints.iterdir()
    assert 3 <= int(saved.name.removeprefix("checkpoint-")) < 20
    processes.train(2, config, *overrides)
    assert losses(tmp_path) == pytest.approx(alone, rel=1e-5)


def test_a_numbered_gpu_cannot_be_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RequestError, match="CUDA_VISIBLE_DEVICES"):
        pick_device("cuda:0")
    assert pick_device("cpu").type == "cpu"
