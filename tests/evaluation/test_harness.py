"""The metrics of lm-eval's harness."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from lors_cli.errors import LorsError
from lors_cli.evaluation import harness
from lors_cli.evaluation.benchmarks import Asked
from lors_cli.evaluation.presets import Benchmark
from tests.evaluation.tasks import results

Lors = Callable[..., Result]
WriteConfig = Callable[..., Path]


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
    entries = results(tmp_path)["models"]["dense"]["tasks"]
    compared = 0
    for task in ("words", "letters"):
        for key, value in own["results"][task].items():
            if "," in key and isinstance(value, float):
                assert entries[task][key.removesuffix(",none")] == value, key
                compared += 1
        assert entries[task]["n"] == own["n-samples"][task]["effective"] == 11
        assert entries[task]["shots"] == own["n-shot"][task] == 2
        assert entries[task]["version"] == own["versions"][task]
    assert compared == 8
    assert entries["words"]["metric"] == "acc"
    assert entries["letters"]["metric"] == "exact_match,strict-match"


OUTCOME = {
    "groups": {"exams": {"acc,none": 0.5, "acc_stderr,none": 0.1, "sample_len": 8, "alias": "exams"}},
    "results": {
        "exams_a": {"acc,none": 0.25, "acc_norm,none": 0.5, "alias": " - a"},
        "maths": {"exact_match,strict-match": 0.1, "exact_match,flexible-extract": 0.2},
        "folder": {"alias": "folder"},
    },
    "n-samples": {"exams_a": {"original": 9, "effective": 4}, "maths": {"original": 2, "effective": 2}},
    "n-shot": {"exams_a": 5, "maths": 8},
    "versions": {"exams_a": 1.0},
    "group_subtasks": {"exams": ["exams_a"], "folder": ["maths"]},
}


def test_entries_of_tasks_and_groups() -> None:
    asked = Asked("exams", [], {"maths": Benchmark("gsm8k", "exact_match,flexible-extract", 8)})
    entries = harness._metrics(OUTCOME, asked)
    assert entries == {
        "exams": {"acc": 0.5, "acc_stderr": 0.1, "n": 8, "shots": None, "version": None, "metric": "acc"},
        "exams_a": {
            "acc": 0.25,
            "acc_norm": 0.5,
            "n": 4,
            "total": 9,
            "shots": 5,
            "version": 1.0,
            "metric": "acc",
            "group": "exams",
        },
        "maths": {
            "exact_match,strict-match": 0.1,
            "exact_match,flexible-extract": 0.2,
            "n": 2,
            "total": 2,
            "shots": 8,
            "version": None,
            "metric": "exact_match,flexible-extract",
            "benchmark": "gsm8k",
        },
    }  # a group without a metric only holds its tasks together


def test_a_benchmark_whose_task_lacks_its_metric_is_an_error() -> None:
    with pytest.raises(LorsError, match=r"exams_a does not give pass@1, which is the metric of humaneval"):
        harness._metrics(OUTCOME, Asked("exams", [], {"exams_a": Benchmark("humaneval", "pass@1", 0)}))
