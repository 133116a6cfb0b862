"""A mixture through the command: killed and resumed, on one process and on two, with sources of every kind."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import Result

from lors_cli.training import batches
from lors_cli.training.collate import collate
from tests.training import processes
from tests.training.outcome import CHECKPOINTS, adapter, checkpoints, losses, manifest, same, unbroken

Lors = Callable[..., Result]
WriteConfig = Callable[..., Path]
Jsonl = Callable[..., Path]

TURNS = [
    {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{n} {n}."}]}
    for n in range(9)
]
WEIGHTS = (5, 2, 1)
STEPS = 16


@pytest.fixture
def config(lors: Lors, write_config: WriteConfig, jsonl: Jsonl, tmp_path: Path) -> Path:
    """A chat that is held, shards that are streamed by a glob, and a text that is held; four samples a step."""
    (tmp_path / "shards").mkdir()
    for part in range(3):
        jsonl([{"text": " ".join(str(n * part) for n in range(row + 9))} for row in range(12)], f"shards/{part}.jsonl")
    sources: list[dict[str, Any]] = [
        {"path": str(jsonl(TURNS))},
        {"path": str(tmp_path / "shards/*.jsonl"), "streaming": True},
        {"path": "python-topics", "limit": 2},
    ]
    path = write_config(
        train__dataset=[{**source, "weight": weight} for source, weight in zip(sources, WEIGHTS, strict=True)],
        train__micro_batch_size=1,
        train__max_steps=STEPS,
        train__sequence_length=32,
        train__save_steps=2,
        train__repeat=True,
    )
    lors("prune", path)
    return path


def drawn(tmp_path: Path) -> list[tuple[int, int, float]]:
    sources = manifest(tmp_path)["data"]["train.dataset"]
    return [(source["drawn"], source["drawn_tokens"], source["share"]) for source in sources]


def taken(tmp_path: Path, process: int | str) -> list[list[list[int]]]:
    """The token ids of each micro-batch that a process has taken since this was last asked."""
    path = tmp_path / f"ids.{process}"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.unlink()
    return lines


def test_killed_in_the_middle_it_ends_with_the_same_bits_and_counts(lors: Lors, config: Path, tmp_path: Path) -> None:
    wanted = unbroken(lors, tmp_path, config)
    counts = json.loads((tmp_path / "unbroken/lors.json").read_text())["data"]["train.dataset"]
    for goal in (2, 8):
        (child,) = processes.start(1, config)
        processes.until(lambda goal=goal: max(checkpoints(tmp_path), default=0) >= goal)  # type: ignore[misc]
        os.kill(child, signal.SIGKILL)
        assert processes.wait([child]) == [-signal.SIGKILL]
    messages = lors("train", config).stderr
    assert "resuming from checkpoint-" in messages
    assert same(adapter(tmp_path), wanted)
    assert manifest(tmp_path)["data"]["train.dataset"] == counts
    assert [count for count, _, _ in drawn(tmp_path)] == [STEPS * 4 * weight // 8 for weight in WEIGHTS]
    assert [share for _, _, share in drawn(tmp_path)] == [weight / 8 for weight in WEIGHTS]
    assert sum(tokens for _, tokens, _ in drawn(tmp_path)) == manifest(tmp_path)["tokens"]
    assert "train.dataset[2]: 8 samples with 256 tokens, 12.5000% of the samples, from python-topics" in messages
    assert all(source["rows"] > 0 for source in counts)
    assert [source["path"] for source in counts] == [
        source["path"] for source in manifest(tmp_path)["config"]["train"]["dataset"]
    ]


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed")
def test_two_processes_take_the_samples_of_one_also_after_a_loss(
    lors: Lors, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def noted(samples: list[Any], padding: int) -> Any:
        with (tmp_path / f"ids.{os.environ.get('RANK', 'alone')}").open("a") as file:
            print(json.dumps([sample["input_ids"] for sample in samples]), file=file)
        return collate(samples, padding)

    monkeypatch.setattr(batches, "collate", noted)
    start = "train.init=random"  # no start that takes samples too
    lors("train", config, start)
    alone, counts, order = losses(tmp_path), drawn(tmp_path), taken(tmp_path, "alone")
    assert len(order) == STEPS * 4
    (tmp_path / "run/adapter").rename(tmp_path / "alone")
    children = processes.start(2, config, [start], log=tmp_path / "messages")
    processes.until(lambda: (tmp_path / CHECKPOINTS / "checkpoint-6").exists())
    os.kill(children[1], signal.SIGKILL)
    assert processes.wait(children) == [1, -signal.SIGKILL]
    before = [taken(tmp_path, rank) for rank in range(2)]
    kept = max(checkpoints(tmp_path))
    processes.train(2, config, start)
    for rank, first in enumerate(before):
        own = order[rank::2]  # of every sample of the training order, one after the other
        assert first == own[: len(first)]
        assert taken(tmp_path, rank) == own[kept * 2 :]
    assert manifest(tmp_path)["processes"] == 2
    assert drawn(tmp_path) == counts
    assert losses(tmp_path) == pytest.approx(alone, rel=1e-5)


def test_a_dry_run_says_what_comes_from_where(lors: Lors, config: Path) -> None:
    shown = lors("train", config, "--dry-run").stdout
    assert "a mixture of 3 sources, 4 a step, 16 steps" in shown
    assert "dataset[0]: 62.5000% of the samples, 40 of 64, from " in shown
    assert "dataset[0], row 1: <|user|>0?<|end|><|assistant|>⟦0 0.<|end|>⟧" in shown
    assert "dataset[2], row 1: ⟦" in shown
    tiny = lors("train", config, "train.dataset.2.weight=1e-9", "--dry-run").stdout
    assert "dataset[2]: 0.0000% of the samples, 0 or 1 of 64, from python-topics" in tiny


def test_a_source_that_is_too_short_is_refused_before_the_work(lors: Lors, config: Path) -> None:
    said = lors("train", config, "train.repeat=false", "--dry-run", status=2).stderr
    assert "train.dataset[0]" in said
    assert "40 samples, its share of 16 steps of 4, or train.repeat: true" in said
    assert "with 9 samples" in said
    assert "train.dataset[1]" not in said  # of a stream it is not known
    assert "train.dataset[2]" not in said  # it has enough
    assert "at most 3 steps" in said
    lors("train", config, "train.repeat=false", "train.max_steps=3", "--dry-run")
    lors("train", config, "train.repeat=false", "train.max_steps=4", "--dry-run", status=2)
    more = ["train.dataset.0.weight=1", "train.dataset.1.weight=9"]
    lors("train", config, "train.repeat=false", *more, "--dry-run")


def test_a_stream_that_ends_early_is_named_and_can_begin_again(lors: Lors, config: Path, tmp_path: Path) -> None:
    more = ["train.dataset.0.weight=1", "train.dataset.1.weight=30"]
    said = lors("train", config, "train.repeat=false", *more, "train.max_steps=60", status=1).stderr
    assert "train.dataset[1] (" in said
    assert "/shards/*.jsonl) ended after step" in said
    assert "is kept. Go on with train.repeat=true" in said
    (ended,) = checkpoints(tmp_path)[-1:]
    again = lors("train", config, *more, "train.max_steps=60").stderr
    assert f"resuming from checkpoint-{ended}" in again
    broken = adapter(tmp_path)
    lors("train", config, *more, "train.max_steps=60", "--force")
    assert same(adapter(tmp_path), broken)


def test_tokens_tell_the_steps_by_the_mean_of_the_sources(lors: Lors, config: Path, tmp_path: Path) -> None:
    more = ["train.max_steps=null", "train.max_tokens=3000"]
    said = lors("train", config, *more, "train.dataset.0.streaming=true", "--dry-run", status=2).stderr
    assert "true for a stream of rows with max_tokens" in said
    lors("train", config, *more)
    assert manifest(tmp_path)["tokens"] == pytest.approx(3000, abs=4 * 32)


def test_changed_rows_and_moved_files_are_told_apart(lors: Lors, config: Path, tmp_path: Path) -> None:
    lors("train", config)
    (tmp_path / "moved").mkdir()
    rows = (tmp_path / "rows.jsonl").rename(tmp_path / "moved/rows.jsonl")
    (tmp_path / "shards").rename(tmp_path / "elsewhere")
    moved = [f"train.dataset.0.path={rows}", f"train.dataset.1.path={tmp_path}/elsewhere/*.jsonl"]
    lors("train", config, *moved)  # the same request, which is done
    rows.write_text(rows.read_text().replace("0 0.", "0 1."))
    said = lors("train", config, *moved, status=2).stderr
    assert "data.train.dataset" in said
    said = lors("train", config, *moved, "train.dataset.2.weight=2", status=2).stderr
    assert "weight" in said
