"""Benchmarks: presets, what lm-eval itself would say, items, interruptions, several processes, no network."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import Result

from lors_cli import offline
from lors_cli.evaluation import harness, items
from tests.conftest import SHARED_DATA, needs_shared_data
from tests.training import processes

Lors = Callable[..., Result]
WriteConfig = Callable[..., Path]

MODEL_ANSWERS = {
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"train": "train.jsonl", "validation": "items.jsonl"}},
    "training_split": "train",
    "validation_split": "validation",
    "doc_to_text": "{{question}}",
}
CHOICE = {
    **MODEL_ANSWERS,
    "output_type": "multiple_choice",
    "doc_to_target": "answer",
    "doc_to_choice": "choices",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    "metadata": {"version": 3.0},
}
GENERATION = {
    **MODEL_ANSWERS,
    "output_type": "generate_until",
    "doc_to_target": "{{choices[answer]}}",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4},
    "metric_list": [{"metric": "exact_match"}],
    "filter_list": [
        {"name": "strict-match", "filter": [{"function": "take_first"}]},
        {"name": "first-letter", "filter": [{"function": "regex", "regex_pattern": "([a-z])"}]},
    ],
}
PRESET = ["arc_challenge", "arc_easy", "boolq", "hellaswag", "openbookqa", "rte", "winogrande"]


@pytest.fixture
def task_dir(tmp_path: Path) -> Path:
    """Two tasks, and local stand-ins for those of the preset lors-paper."""
    directory = tmp_path / "tasks"
    directory.mkdir()
    for name, content in {"words": CHOICE, "letters": GENERATION, **{f"{n}_local": CHOICE for n in PRESET}}.items():
        (directory / f"{name}.yaml").write_text(json.dumps({"task": name, **content}))
    rows = [{"question": f"{i} and {i * i % 7}:", "choices": [" red", " blue sky"], "answer": i % 2} for i in range(23)]
    for name, part in {"items": rows[:13], "train": rows[13:]}.items():
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return directory


def results(tmp_path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tmp_path / "run/eval/results.json").read_text())
    return found


def contents(directory: Path) -> dict[str, bytes]:
    files = [path for path in directory.rglob("*") if path.is_file() and path.name != "lors.json"]
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


@pytest.fixture(autouse=True)
def _online_again() -> Any:
    """What switches the network off does so for the process; here that is the test run, which has none anyway."""
    with pytest.MonkeyPatch.context() as patch:
        for name in offline.VARIABLES:
            patch.setenv(name, "1")
        yield


def test_metrics_equal_those_of_the_harness_own_command(
    lors: Lors, write_config: WriteConfig, task_dir: Path, dense: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf"]
    command += ["--model_args", f"pretrained={dense},dtype=float32"]
    command += ["--include_path", str(task_dir), "--tasks", "words,letters", "--num_fewshot", "2", "--limit", "11"]
    command += ["--device", "cpu", "--output_path", str(tmp_path / "own")]
    subprocess.run(command, check=True, cwd=task_dir, capture_output=True)
    (file,) = (tmp_path / "own").rglob("results_*.json")
    own = json.loads(file.read_text())
    options = {"tasks": ["words", "letters"], "task_dir": str(task_dir), "shots": 2, "limit": 11, "models": ["dense"]}
    lors("eval", write_config(eval=options))
    found = results(tmp_path)["models"]["dense"]["tasks"]
    compared = 0
    for task in ("words", "letters"):
        for key, value in own["results"][task].items():
            if "," in key and isinstance(value, float):
                assert found[task][key.removesuffix(",none")] == value, key
                compared += 1
        assert found[task]["n"] == own["n-samples"][task]["effective"] == 11
        assert found[task]["shots"] == own["n-shot"][task] == 2
        assert found[task]["version"] == own["versions"][task]
    assert compared == 8
    assert found["words"]["metric"] == "acc"
    assert found["letters"]["metric"] == "exact_match,strict-match"


def test_a_preset_takes_local_copies_and_averages_the_papers_metric(
    lors: Lors, write_config: WriteConfig, task_dir: Path, tmp_path: Path
) -> None:
    options = {
        "preset": "lors-paper",
        "tasks": ["words"],
        "task_dir": str(task_dir),
        "models": ["dense"],
        "offline": True,
    }
    shown = lors("eval", write_config(eval=options)).stdout
    model = results(tmp_path)["models"]["dense"]
    assert [entry.get("benchmark") for entry in model["tasks"].values()] == [*PRESET, None]
    assert list(model["tasks"]) == [*(f"{name}_local" for name in PRESET), "words"]
    accuracies = [model["tasks"][f"{name}_local"]["acc"] for name in PRESET]
    assert model["average"] == pytest.approx(sum(accuracies) / 7)
    assert f"{model['average']:.4f}" in shown
    assert results(tmp_path)["settings"]["preset"] == "lors-paper"


@pytest.mark.parametrize(
    ("preset", "shots", "names"),
    [("loram-csr", {1}, ["arc_easy", "piqa", "winogrande"]), ("loram-math", {1, 8}, ["gsm8k", "mathqa"])],
)
def test_presets_have_the_papers_shots(
    lors: Lors,
    write_config: WriteConfig,
    task_dir: Path,
    tmp_path: Path,
    preset: str,
    shots: set[int],
    names: list[str],
) -> None:
    for name in ("piqa", "mathqa"):
        (task_dir / f"{name}.yaml").write_text(json.dumps({"task": name, **CHOICE}))
    (task_dir / "gsm8k_local.yaml").write_text(json.dumps({"task": "gsm8k_local", **GENERATION, "num_fewshot": 5}))
    lors("eval", write_config(eval={"preset": preset, "task_dir": str(task_dir), "limit": 3, "models": ["dense"]}))
    found = {entry["benchmark"]: entry for entry in results(tmp_path)["models"]["dense"]["tasks"].values()}
    assert set(names) <= set(found)
    assert {entry["shots"] for entry in found.values()} == shots
    assert all(entry["metric"] in entry for entry in found.values())


def test_humaneval_in_a_local_group(
    lors: Lors, write_config: WriteConfig, make_model: Callable[..., Path], task_dir: Path, tmp_path: Path
) -> None:
    names = [f"humaneval_{kind}" for kind in ("greedy", "t02", "t06", "t08")]
    files = {"data_files": {"test": "problems.jsonl"}}
    group = {"group": "humaneval_local", "dataset_path": "json", "dataset_kwargs": files, "task": names}
    (task_dir / "humaneval_local.yaml").write_text(json.dumps(group))
    problem = {"task_id": "a/0", "prompt": "def one():\n", "canonical_solution": "    return 1\n", "entry_point": "one"}
    (task_dir / "problems.jsonl").write_text(json.dumps({**problem, "test": "def check(f):\n    assert f() == 1\n"}))
    model = make_model(tmp_path / "model", max_position_embeddings=1200)
    config = write_config(
        model=str(model), eval={"preset": "humaneval", "task_dir": str(task_dir), "models": ["dense"]}
    )
    assert "eval.allow_code_execution" in lors("eval", config, status=2).stderr
    lors("eval", config, "eval.allow_code_execution=true")
    found = results(tmp_path)["models"]["dense"]["tasks"]
    assert {name: entry["metric"] for name, entry in found.items()} == dict(
        zip(names, ["pass@1", *["pass@10"] * 3], strict=True)
    )
    assert all(entry["benchmark"] == name for name, entry in found.items())


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
    found = model["perplexity"]
    assert math.exp(sum(losses) / tokens) == pytest.approx(found["value"], rel=1e-12)
    assert tokens == found["tokens"]
    error = np.std([loss / 31 for loss in losses], ddof=1) / math.sqrt(len(losses))
    assert found["stderr"] == pytest.approx(found["value"] * error)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    lors("eval", config, "--force")
    assert before == {file.name: file.read_bytes() for file in folder.iterdir()}


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
    asked: list[str] = []
    run = harness.Harness.run

    def interrupted(self: Any, task: Any) -> Any:
        asked.append(task.name)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return run(self, task)

    monkeypatch.setattr(harness.Harness, "run", interrupted)
    lors("eval", config, status=130)
    # another batch size is no other request
    lors("eval", config, "eval.batch_size=2")
    assert asked == ["words", "letters", "words", "letters", "letters"]
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


def test_offline_everything_that_is_missing_is_named_at_once(
    lors: Lors, write_config: WriteConfig, task_dir: Path, tmp_path: Path
) -> None:
    for name in ("rte", "boolq"):
        (task_dir / f"{name}_local.yaml").unlink()
    (task_dir / "broken.yaml").write_text(json.dumps({"task": "broken", **CHOICE, "output_type": "riddle"}))
    config = write_config(
        eval={
            "preset": "lors-paper",
            "tasks": ["hellaswagg", "broken"],
            "task_dir": str(task_dir),
            "offline": True,
            "models": ["dense", "somebody/some-model"],
            "perplexity": {"dataset": "somebody/some-text"},
        }
    )
    said = lors("eval", config, status=2).stderr
    for words in (
        "the data set of rte, nyu-mll/glue,",
        "the data set of boolq, aps/super_glue,",
        "did you mean 'hellaswag'?",
        f"the task 'broken' ({task_dir / 'broken.yaml'}) to be right",
        "'somebody/some-model', which is not a local path",
        "'somebody/some-text', which is no local file",
        "lors eval CONFIG --prefetch",
    ):
        assert words in said, said
    assert not (tmp_path / "run").exists()


def test_prefetch_says_what_is_there_and_measures_nothing(
    lors: Lors, write_config: WriteConfig, task_dir: Path, tmp_path: Path
) -> None:
    config = write_config(eval__tasks=["words"], eval__task_dir=str(task_dir), eval__models=["dense", "merged"])
    shown = lors("eval", config, "--prefetch").stdout
    for words in ("dense: ", "merged: made by the config's own stages", "train.dataset: python-topics", "task words"):
        assert words in shown
    assert not (tmp_path / "run").exists()
    missing = write_config(eval__tasks=["words"], eval__task_dir=str(task_dir), train__dataset="somebody/some-text")
    assert "somebody/some-text" in lors("eval", missing, "--prefetch", status=2).stderr


def test_a_model_without_a_tokenizer_is_refused(
    lors: Lors, write_config: WriteConfig, make_model: Callable[..., Path], task_dir: Path, tmp_path: Path
) -> None:
    model = make_model(tmp_path / "bare")
    for file in model.glob("token*"):
        file.unlink()
    (model / "chat_template.jinja").unlink(missing_ok=True)
    options = {"tasks": ["words"], "task_dir": str(task_dir), "models": [str(model)]}
    assert "tokenizer" in lors("eval", write_config(eval=options), status=2).stderr
    assert not (tmp_path / "run").exists()


def test_vllm_is_asked_for_where_it_is_missing(lors: Lors, write_config: WriteConfig, task_dir: Path) -> None:
    config = write_config(eval__tasks=["words"], eval__task_dir=str(task_dir), eval__backend="vllm")
    assert "pip install" in lors("eval", config, status=2).stderr


@needs_shared_data
def test_the_papers_benchmarks_on_the_shipped_data(
    lors: Lors, write_config: WriteConfig, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    model = make_model(tmp_path / "model", max_position_embeddings=2048)
    data = {"task_dir": str(SHARED_DATA / "lm_eval_tasks"), "data_dir": str(SHARED_DATA), "limit": 2}
    options = {"models": ["dense"], "offline": True, **data}
    lors("eval", write_config(model=str(model), eval={"preset": "lors-paper", **options}))
    found = results(tmp_path)["models"]["dense"]["tasks"]
    assert [entry["benchmark"] for entry in found.values()] == PRESET
    config = write_config(model=str(model), eval={"preset": "loram-math", **options, "limit": 1})
    lors("eval", config, f"output_dir={tmp_path / 'math'}")
