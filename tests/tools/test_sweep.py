import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from lors_cli import pipeline
from lors_cli.config.load import load
from lors_cli.errors import RequestError
from lors_cli.tools import sweep_grid, sweep_results
from lors_cli.tools.sweep import sweep

Lors = Callable[..., Result]
WriteConfig = Callable[..., Path]

RATES = "train.learning_rate=1e-2,3e-3"
NAMES = ["learning_rate=0.01", "learning_rate=0.003"]
HELD_OUT = {
    "train__eval_dataset": {"path": "python-topics", "split": "test", "limit": 1},
    "train__max_steps": 2,
    "train__init": "random",
}


@pytest.fixture
def config(write_config: WriteConfig) -> Path:
    return write_config(**HELD_OUT)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "run/sweep"


def results(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "results.json").read_text())
    return found


def problems(path: Path, *arguments: str) -> dict[str, str]:
    """The keys of what is wrong with a grid, and what was expected instead."""
    with pytest.raises(RequestError) as caught:
        sweep_grid.build(path, list(arguments))
    return {problem.key: f"{problem.expected}; {problem.got}" for problem in caught.value.problems}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("1e-4, 3e-4", ["1e-4", "3e-4"]),
        ("[q_proj, k_proj],[up_proj]", ["[q_proj, k_proj]", "[up_proj]"]),
        ("{path: 'a,b', limit: 3},{path: c}", ["{path: 'a,b', limit: 3}", "{path: c}"]),
        ("\"a,]b\",don't,won't", ['"a,]b"', "don't", "won't"]),
        ("1,", ["1", ""]),
    ],
)
def test_commas_split_only_outside_brackets_and_quotes(text: str, parts: list[str]) -> None:
    assert sweep_grid.split(text) == parts


def test_a_grid_is_the_product_of_its_axes_in_their_order(config: Path, tmp_path: Path) -> None:
    grid = sweep_grid.build(config, ["train.rank=2,4", "train.alpha=8", RATES])
    assert [run.values for run in grid.runs] == [
        {"train.rank": rank, "train.learning_rate": rate} for rank in (2, 4) for rate in (1e-2, 3e-3)
    ]
    assert [run.name for run in grid.runs[:2]] == [f"rank=2,{name}" for name in NAMES]
    assert {run.config.train.alpha for run in grid.runs if run.config.train} == {8}
    assert grid.runs[0].config.output_dir == str(tmp_path / "run/sweep" / grid.runs[0].name)
    assert [run.stages for run in grid.runs] == [["train"]] * 4
    assert {run.config.train.input for run in grid.runs if run.config.train} == {str(tmp_path / "run/pruned")}


def test_an_axis_of_the_pruning_prunes_in_every_run(config: Path) -> None:
    grid = sweep_grid.build(config, ["prune.method=wanda,magnitude", "train.method=lors,spp", "prune.sparsity=2:4,0.5"])
    assert grid.base is None
    assert grid.runs[2].name == "prune.method=wanda,train.method=spp,sparsity=2-4"
    for run in grid.runs:
        assert run.stages == ["prune", "train"]
        assert run.config.train is not None
        assert run.config.train.input is None


def test_seeds_share_the_pruned_model_of_the_files_seed(config: Path) -> None:
    grid = sweep_grid.build(config, ["seed=1,2"])
    assert [(run.config.seed, run.stages) for run in grid.runs] == [(1, ["train"]), (2, ["train"])]
    assert grid.base is not None
    assert grid.base.seed == 0


def test_names_are_safe_and_tell_values_apart(config: Path) -> None:
    grid = sweep_grid.build(config, ["train.target_modules=[q_proj],[up_proj],null", "train.dataset.path=a/b,a-b"])
    names = [run.name for run in grid.runs]
    assert len(set(names)) == 6
    assert names[5] == "target_modules=null,path=a-b"
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_=,-") for name in names)
    assert sweep_grid.build(config, ["train.rank=1,2"]).runs[0].name == "rank=1"  # which is not true


def test_every_mistake_of_a_grid_is_reported_at_once(config: Path, write_config: WriteConfig) -> None:
    found = problems(config, "train.rank=1,,2", "train.alpha=1,1", "merge.dense=true,false", "output_dir=a,b")
    assert set(found) == {"train.rank", "train.alpha", "merge.dense", "output_dir"}
    assert "does not change training" in found["merge.dense"]
    assert set(problems(config, "train.rank=-1,4", "train.method=lors,los")) == {"train.rank", "train.method"}
    assert "1e-4,3e-4" in problems(config, "train.rank=4")["key=v1,v2"]
    assert (
        "rank=4,learning_rate=0.01" in problems(config, "train.rank=4,8", "train.learning_rate=1e-2,0.01")["key=v1,v2"]
    )
    assert set(problems(config, "train.rank=1,2", "train.rank=4")) == {"train.rank"}
    assert set(problems(config, "train.eval_dataset.limit=1,2")) == {"train.eval_dataset"}
    assert set(problems(config, "prune.sparsity=0.5,0.6", "train.input=some")) == {"prune.sparsity"}
    neither = problems(write_config(eval=...), RATES)
    assert "train.eval_dataset, or eval.perplexity" in neither["train.eval_dataset"]


def test_runs_that_cannot_be_are_refused_before_the_first(lors: Lors, config: Path, tmp_path: Path) -> None:
    assert "train.rank" in lors("sweep", config, "train.rank=2,64", status=2).stderr
    assert "0 to 1" in lors("sweep", config, RATES, "--task", 2, status=2).stderr
    shown = lors("sweep", config, RATES, "--dry-run").stdout.splitlines()
    assert shown == [
        f"prune, shared by all runs -> {tmp_path}/run/pruned",
        *(f"task {number}: train -> {tmp_path}/run/sweep/{name}" for number, name in enumerate(NAMES)),
    ]
    assert not (tmp_path / "run").exists()


def test_a_sweep_ends_in_a_table_and_the_best_config(lors: Lors, config: Path, directory: Path) -> None:
    first = lors("sweep", config, RATES)
    assert "run 2 of 2: learning_rate=0.003" in first.stderr
    found = results(directory)
    assert [run["name"] for run in found["runs"]] == NAMES
    assert found["criterion"] == "held-out loss"
    for run, line in zip(found["runs"], first.stdout.splitlines()[2:4], strict=True):
        log = [json.loads(line) for line in (directory / run["name"] / "adapter/training_log.jsonl").open()]
        assert run["value"] == min(line["eval_loss"] for line in log if "eval_loss" in line)
        assert f"{run['value']:.4f}" in line
        assert f"{run['training']['last_loss']:.4f}" in line
        assert ("best" in line) == (run["name"] == found["best"])
    assert found["best"] == min(found["runs"], key=lambda run: float(run["value"]))["name"]
    assert (directory / "results.md").read_text() == first.stdout
    second = lors("sweep", config, RATES)
    assert second.stderr.count("nothing to do") == 3
    assert second.stdout == first.stdout

    best = directory / "best.yaml"
    written = load(best, [])
    assert written.output_dir == str(directory / found["best"])
    assert written.eval is not None
    assert written.eval.models == ["dense", "pruned", "merged"]
    after = lors("run", best)
    assert after.stderr.count("nothing to do") == 1
    assert sorted(path.name for path in (directory / found["best"]).iterdir() if path.is_dir()) == [
        "adapter",
        "eval",
        "merged",
    ]


def test_a_failed_run_is_reported_and_the_others_go_on(lors: Lors, config: Path, directory: Path) -> None:
    shown = lors("sweep", config, "train.learning_rate=1e20,1e-2", "train.max_grad_norm=0")
    failed, finished = results(directory)["runs"]
    assert (failed["state"], finished["state"]) == ("failed", "finished")
    assert results(directory)["best"] == finished["name"]
    assert "failed" in shown.stdout.splitlines()[2]
    assert f"- learning_rate=1e+20: {failed['reason']}" in shown.stdout
    assert (directory / "best.yaml").exists()
    every = lors("sweep", config, "train.learning_rate=1e20,1e21", "train.max_grad_norm=0", status=1)
    assert "all 2 runs failed" in every.stderr
    assert not (directory / "best.yaml").exists()


def test_perplexity_decides_without_held_out_rows(lors: Lors, write_config: WriteConfig, directory: Path) -> None:
    config = write_config(merge=..., train__max_steps=2, train__init="random", eval__tasks=["lors_quiz"])
    lors("sweep", config, "train.rank=2,4")
    found = results(directory)
    assert found["criterion"] == "perplexity"
    for run in found["runs"]:
        measured = json.loads((directory / run["name"] / "eval/results.json").read_text())["models"]
        assert list(measured) == ["merged"]
        assert run["value"] == measured["merged"]["perplexity"]["value"]
    assert lors("run", directory / "best.yaml").stderr.count("nothing to do") == 3


def test_an_array_and_a_killed_sweep_end_alike(lors: Lors, config: Path, directory: Path, tmp_path: Path) -> None:
    def made() -> list[Any]:
        adapters = [(directory / name / "adapter/adapter_model.safetensors").read_bytes() for name in NAMES]
        return [*adapters, *(run["value"] for run in results(directory)["runs"])]

    assert lors("sweep", config, RATES, "--task", 1).stdout == ""
    assert not (directory / NAMES[0]).exists()
    pruned = (directory.parent / "pruned/lors.json").read_bytes()
    table = lors("sweep", config, RATES, "--task", 0, "--force").stdout
    assert (directory.parent / "pruned/lors.json").read_bytes() == pruned
    assert all(f"| {name.split('=')[1]} " in table for name in NAMES)
    assert lors("sweep", config, RATES).stdout == table
    array = made()

    (tmp_path / "run").rename(tmp_path / "array")
    child = os.fork()
    if child == 0:
        try:
            sweep(config, [RATES], pipeline.run)
        finally:
            os._exit(0)
    deadline = time.monotonic() + 120
    while not (directory / NAMES[1] / ".adapter.partial").exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    assert lors("sweep", config, RATES).stderr.count("nothing to do") == 2  # the pruning and the first run
    assert made() == array


def test_seeds_are_averaged_and_the_best_setting_is_by_the_mean(config: Path) -> None:
    grid = sweep_grid.build(config, ["train.rank=2,4,8", "seed=0,1"])
    values = [1.0, 3.0, 1.5, 2.0, 0.5, None]  # rank 8 has the lowest value, but one of its seeds failed
    outcomes = [
        {"values": run.values, "state": "failed" if value is None else "finished", "value": value, "reason": "NaN loss"}
        for run, value in zip(grid.runs, values, strict=True)
    ]
    groups = sweep_results.seed_groups(grid, outcomes)
    assert [group["values"]["train.rank"] for group in groups] == [4, 2, 8]
    assert [group["mean"] for group in groups] == [1.75, 2.0, 0.5]
    assert [group["deviation"] for group in groups] == [pytest.approx(0.125**0.5), pytest.approx(2**0.5), None]
    assert sweep_results.best_run(outcomes, groups) == 2
    rows = sweep_results.seed_table(grid, groups).splitlines()[2:]
    assert "1.7500 ± 0.3536" in rows[0]
    assert "best" in rows[0]
    assert "1 of 2" in rows[2]
    assert "failed" in sweep_results.table(grid, outcomes, 2).splitlines()[-1]


@pytest.mark.parametrize("argument", ["prune.sparsity=2:4,0.5", "train.learning_rate=1e-5,1e20", "seed=1,2"])
def test_the_best_config_loads_back_to_an_equal_one(config: Path, tmp_path: Path, argument: str) -> None:
    path = tmp_path / "best.yaml"
    for run in sweep_grid.build(config, [argument]).runs:
        path.write_text(sweep_results.best_yaml(run.config, path, "perplexity 12"))
        assert load(path, []).model_dump() == run.config.model_dump()
        assert path.read_text().startswith(f"# lors run {path}\n")
    if "2:4" in argument:
        assert 'sparsity: "2:4"' in path.read_text() or '"0.5"' in path.read_text()
