import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from lors_cli.config.load import load
from tests.search.conftest import KillSweep, WriteConfig

Lors = Callable[..., Result]

RATES = "train.learning_rate=1e-2,3e-3"
NAMES = ["learning_rate=0.01", "learning_rate=0.003"]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "run/sweep"


def results(directory: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((directory / "results.json").read_text())
    return content


def test_runs_that_cannot_be_are_refused_before_the_first(lors: Lors, config: Path, tmp_path: Path) -> None:
    assert "train.rank" in lors("sweep", config, "train.rank=2,64", status=2).stderr
    assert "0 to 1" in lors("sweep", config, RATES, "--task", 2, status=2).stderr
    shown = lors("sweep", config, RATES, "--dry-run").stdout.splitlines()
    assert [line.partition(" ")[0] for line in shown[-3:]] == ["disk:", "all", "time:"]
    assert shown[:-3] == [
        f"prune, shared by all runs -> {tmp_path}/run/pruned",
        *(f"task {number}: train -> {tmp_path}/run/sweep/{name}" for number, name in enumerate(NAMES)),
    ]
    assert not (tmp_path / "run").exists()


def test_a_sweep_ends_in_a_table_and_the_best_config(lors: Lors, config: Path, directory: Path) -> None:
    first = lors("sweep", config, RATES)
    assert "run 2 of 2: learning_rate=0.003" in first.stderr
    content = results(directory)
    assert [run["name"] for run in content["runs"]] == NAMES
    assert content["criterion"] == "held-out loss"
    for run, line in zip(content["runs"], first.stdout.splitlines()[2:4], strict=True):
        log = [json.loads(line) for line in (directory / run["name"] / "adapter/training_log.jsonl").open()]
        assert run["value"] == min(line["eval_loss"] for line in log if "eval_loss" in line)
        assert f"{run['value']:.4f}" in line
        assert f"{run['training']['last_loss']:.4f}" in line
        assert ("best" in line) == (run["name"] == content["best"])
    assert content["best"] == min(content["runs"], key=lambda run: float(run["value"]))["name"]
    assert (directory / "results.md").read_text() == first.stdout
    second = lors("sweep", config, RATES)
    assert second.stderr.count("nothing to do") == 3
    assert second.stdout == first.stdout

    best = directory / "best.yaml"
    written = load(best, [])
    assert written.output_dir == str(directory / content["best"])
    assert written.eval is not None
    assert written.eval.models == ["dense", "pruned", "merged"]
    after = lors("run", best)
    assert after.stderr.count("nothing to do") == 1
    assert sorted(path.name for path in (directory / content["best"]).iterdir() if path.is_dir()) == [
        "adapter",
        "eval",
        "merged",
    ]


def test_a_failed_run_is_reported_and_the_others_go_on(lors: Lors, config: Path, directory: Path) -> None:
    shown = lors("sweep", config, "train.learning_rate=1000,1e-2", "train.max_grad_norm=0", "train.weight_decay=1000")
    failed, finished = results(directory)["runs"]
    assert (failed["state"], finished["state"]) == ("failed", "finished")
    assert results(directory)["best"] == finished["name"]
    assert "failed" in shown.stdout.splitlines()[2]
    assert f"- learning_rate=1000.0: {failed['reason']}" in shown.stdout
    assert (directory / "best.yaml").exists()
    every = lors(
        "sweep", config, "train.learning_rate=900,1000", "train.max_grad_norm=0", "train.weight_decay=1000", status=1
    )
    assert "all 2 runs failed" in every.stderr
    assert not (directory / "best.yaml").exists()


def test_perplexity_decides_without_held_out_rows(lors: Lors, write_config: WriteConfig, directory: Path) -> None:
    config = write_config(merge=..., train__max_steps=2, train__init="random", eval__tasks=["lors_quiz"])
    lors("sweep", config, "train.rank=2,4")
    content = results(directory)
    assert content["criterion"] == "perplexity"
    for run in content["runs"]:
        measured = json.loads((directory / run["name"] / "eval/results.json").read_text())["models"]
        assert list(measured) == ["merged"]
        assert run["value"] == measured["merged"]["perplexity"]["value"]
    assert lors("run", directory / "best.yaml").stderr.count("nothing to do") == 3


def without_seconds(directory: Path) -> list[Any]:
    """The results of a sweep but for what its runs have cost, and its table but for the column of that."""
    content = results(directory)
    assert all(run.pop("cost")["seconds"] > 0 for run in content["runs"])
    rows = [line.split(" | ") for line in (directory / "results.md").read_text().splitlines()]
    column = next(number for number, head in enumerate(rows[0]) if head.strip() == "seconds")
    return [content, *([cell.strip() for number, cell in enumerate(row) if number != column] for row in rows)]


def test_an_array_and_a_killed_sweep_end_alike(
    lors: Lors, config: Path, directory: Path, tmp_path: Path, kill_sweep: KillSweep
) -> None:
    def made() -> list[Any]:
        adapters = [(directory / name / "adapter/adapter_model.safetensors").read_bytes() for name in NAMES]
        return [*adapters, *without_seconds(directory)]

    assert lors("sweep", config, RATES, "--task", 1).stdout == ""
    assert not (directory / NAMES[0]).exists()
    pruned = (directory.parent / "pruned/lors.json").read_bytes()
    table = lors("sweep", config, RATES, "--task", 0, "--force").stdout
    assert (directory.parent / "pruned/lors.json").read_bytes() == pruned
    assert all(f"| {name.split('=')[1]} " in table for name in NAMES)
    assert lors("sweep", config, RATES).stdout == table
    array = made()

    (tmp_path / "run").rename(tmp_path / "array")
    kill_sweep(config, [RATES], directory / NAMES[1], ".adapter.partial")
    assert lors("sweep", config, RATES).stderr.count("nothing to do") == 2  # the pruning and the first run
    assert made() == array
