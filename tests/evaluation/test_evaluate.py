"""What an evaluation keeps: items, what an interruption leaves, several processes."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import Result

from lors_cli.evaluation import evaluate, harness, items
from lors_cli.evaluation.perplexity import sample_losses
from tests.evaluation.tasks import results
from tests.training import processes

Lors = Callable[..., Result]
WriteConfig = Callable[..., Path]


def contents(directory: Path) -> dict[str, bytes]:
    files = [path for path in directory.rglob("*") if path.is_file() and path.name != "lors.json"]
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def interrupt_second_perplexity(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Make the second measurement fail as by Ctrl-C; the list grows with each call."""
    calls: list[int] = []

    def interrupted(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return sample_losses(*args)

    monkeypatch.setattr(evaluate, "sample_losses", interrupted)
    return calls


def test_an_interrupted_evaluation_goes_on(
    lors: Lors, write_config: WriteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(eval__models=["dense", "pruned"])
    lors("prune", config)
    calls = interrupt_second_perplexity(monkeypatch)
    lors("eval", config, status=130)
    assert not (tmp_path / "run/eval").exists()
    assert "dense was measured before the interruption" in lors("eval", config).stderr
    assert len(calls) == 3
    assert set(results(tmp_path)["models"]) == {"dense", "pruned"}


def test_items_add_up_to_the_results(lors: Lors, write_config: WriteConfig, task_dir: Path, tmp_path: Path) -> None:
    config = write_config(eval__tasks=["words", "letters"], eval__task_dir=str(task_dir), eval__models=["dense"])
    lors("eval", config)
    model = results(tmp_path)["models"]["dense"]
    folder = tmp_path / "run/eval" / model["items"]
    rows = items.read(folder / "words.jsonl.gz")
    assert [row["doc_id"] for row in rows] == list(range(13))
    assert len({row["doc"] for row in rows}) == len({row["prompt"] for row in rows}) == 13
    for metric in ("acc", "acc_norm"):
        assert sum(row[metric] for row in rows) / 13 == model["tasks"]["words"][metric]
    assert "exact_match,first-letter" in items.read(folder / "letters.jsonl.gz")[0]
    windows = items.read(folder / "perplexity.jsonl.gz")
    losses, tokens = [row["loss"] for row in windows], sum(row["tokens"] for row in windows)
    perplexity = model["perplexity"]
    assert math.exp(sum(losses) / tokens) == pytest.approx(perplexity["value"], rel=1e-12)
    assert tokens == perplexity["tokens"]
    error = np.std([loss / 31 for loss in losses], ddof=1) / math.sqrt(len(losses))
    assert perplexity["stderr"] == pytest.approx(perplexity["value"] * error)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    lors("eval", config, "--force")
    assert before == {file.name: file.read_bytes() for file in folder.iterdir()}


def interrupted_at(number: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Interrupt an evaluation when the task of this number is asked; the list gets the names of those that are."""
    asked: list[str] = []
    run = harness.Harness.run

    def interrupted(self: Any, task: Any) -> Any:
        asked.append(task.name)
        if len(asked) == number:
            raise KeyboardInterrupt
        return run(self, task)

    monkeypatch.setattr(harness.Harness, "run", interrupted)
    return asked


def test_what_was_interrupted_in_a_task_goes_on_with_that_task(
    lors: Lors, write_config: WriteConfig, task_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(
        eval__tasks=["words", "letters"], eval__task_dir=str(task_dir), eval__models=["dense", "pruned"]
    )
    lors("prune", config)
    lors("eval", config)
    unbroken = contents(tmp_path / "run/eval")
    (tmp_path / "run/eval").rename(tmp_path / "unbroken")
    asked = interrupted_at(4, monkeypatch)
    lors("eval", config, status=130)
    # another batch size is no other request
    lors("eval", config, "eval.batch_size=2")
    assert asked == ["words", "letters", "words", "letters", "letters"]
    assert contents(tmp_path / "run/eval") == unbroken


@pytest.mark.parametrize(
    ("damaged", "again"),
    [
        ("work/progress.json", ["words", "letters", "words", "letters"]),
        ("work/request.json", ["words", "letters", "words", "letters"]),
        ("items/dense/words.jsonl.gz", ["words", "words", "letters"]),
        ("items/dense/perplexity.jsonl.gz", ["words", "letters"]),
        ("items/pruned/perplexity.jsonl.gz", ["words", "letters"]),
    ],
)
def test_what_is_damaged_after_an_interruption_is_measured_again(
    lors: Lors,
    write_config: WriteConfig,
    task_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damaged: str,
    again: list[str],
) -> None:
    config = write_config(
        eval__tasks=["words", "letters"], eval__task_dir=str(task_dir), eval__models=["dense", "pruned"]
    )
    lors("prune", config)
    lors("eval", config)
    unbroken = contents(tmp_path / "run/eval")
    (tmp_path / "run/eval").rename(tmp_path / "unbroken")
    asked = interrupted_at(3, monkeypatch)
    lors("eval", config, status=130)
    asked[:] = [""] * 3
    path = tmp_path / "run/.eval.partial" / damaged
    text = bytearray(path.read_bytes())
    text[len(text) // 2] ^= 1
    path.write_bytes(text)
    said = lors("eval", config).stderr
    assert path.name in said
    assert "again" in said
    assert asked[3:] == again
    assert contents(tmp_path / "run/eval") == unbroken


def test_two_processes_measure_what_one_does(
    lors: Lors, write_config: WriteConfig, task_dir: Path, tmp_path: Path
) -> None:
    config = write_config(
        eval__tasks=["words", "letters", "lors_quiz"],
        eval__task_dir=str(task_dir),
        eval__models=["dense"],
        eval__limit=9,
        eval__perplexity__samples=5,
    )
    lors("eval", config)
    alone = results(tmp_path)["models"]["dense"]
    rows = items.read(tmp_path / "run/eval" / alone["items"] / "words.jsonl.gz")
    (tmp_path / "run/eval").rename(tmp_path / "alone")
    assert processes.wait(processes.start(2, config, stage="eval")) == [0, 0]
    shared = results(tmp_path)["models"]["dense"]
    assert shared["perplexity"]["value"] == pytest.approx(alone["perplexity"]["value"], rel=1e-6)
    assert shared["tasks"] == alone["tasks"]
    assert items.read(tmp_path / "run/eval" / shared["items"] / "words.jsonl.gz") == rows
