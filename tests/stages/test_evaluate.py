import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import Result

from lors_cli.data import builtin
from lors_cli.evaluation import evaluate
from lors_cli.evaluation.perplexity import window_losses
from tests.conftest import SHARED_DATA, needs_shared_data

Lors = Callable[..., Result]
WriteConfig = Callable[..., Path]

TASK = """
task: colours
dataset_path: json
dataset_kwargs: {data_files: {validation: items.jsonl}}
output_type: multiple_choice
validation_split: validation
doc_to_text: "{{question}}"
doc_to_target: answer
doc_to_choice: choices
metric_list: [{metric: acc}]
"""


@pytest.fixture
def task_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "tasks"
    (directory / "data").mkdir(parents=True)
    (directory / "colours.yaml").write_text(TASK)
    items = [{"question": f"{i}:", "choices": [" red", " blue"], "answer": i % 2} for i in range(10)]
    (directory / "data/items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    return directory


def results(tmp_path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tmp_path / "run/eval/results.json").read_text())
    return found


@torch.no_grad()
def test_perplexity_equals_the_definition(lors: Lors, write_config: WriteConfig, dense: Path, tmp_path: Path) -> None:
    lors("eval", write_config(eval__models=["dense"]))
    ids = AutoTokenizer.from_pretrained(dense)("\n\n".join(builtin.texts("train")), add_special_tokens=False)[
        "input_ids"
    ]
    windows = torch.tensor(ids[: 4 * 32]).view(4, 32)
    model = AutoModelForCausalLM.from_pretrained(dense)
    losses = [float(model(window[None], labels=window[None]).loss) for window in windows]
    found = results(tmp_path)["models"]["dense"]["perplexity"]
    assert found["value"] == pytest.approx(math.exp(sum(losses) / 4), rel=1e-5)
    assert found["tokens"] == 4 * 31
    assert results(tmp_path)["settings"]["perplexity"]["bos"] is False


def test_local_tasks_without_a_network(lors: Lors, write_config: WriteConfig, task_dir: Path, tmp_path: Path) -> None:
    tasks = {
        "eval__tasks": ["colours", "lors_quiz"],
        "eval__task_dir": str(task_dir),
        "eval__data_dir": f"{task_dir}/data",
    }
    shown = lors("eval", write_config(eval__models=["dense"], eval__limit=6, **tasks)).stdout
    found = results(tmp_path)["models"]["dense"]["tasks"]
    assert set(found) == {"colours", "lors_quiz"}
    assert found["colours"]["n"] == 6
    assert 0 <= found["colours"]["acc"] <= 1
    assert found["colours"]["acc_stderr"] > 0
    assert "colours" in shown
    assert "6 items" in shown


def test_changed_task_files_are_noticed(lors: Lors, write_config: WriteConfig, task_dir: Path, tmp_path: Path) -> None:
    paths = {"eval__task_dir": str(task_dir), "eval__data_dir": f"{task_dir}/data"}
    config = write_config(eval__models=["dense"], eval__tasks=["colours"], **paths)
    lors("eval", config)
    items = task_dir / "data/items.jsonl"
    items.write_text("".join(reversed(items.read_text().splitlines(keepends=True))))
    assert "task_files" in lors("eval", config, status=2).stderr


def test_dense_comes_first_and_a_path_is_a_model(
    lors: Lors, write_config: WriteConfig, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    other = make_model(tmp_path / "other", seed=9)
    lors("eval", write_config(eval__models=[str(other), "dense"]))
    assert list(results(tmp_path)["models"]) == ["dense", str(other)]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"eval__tasks": ["colors"]}, "colours"),
        ({"eval__task_dir": "/nowhere"}, "an existing directory"),
        ({"eval__data_dir": ...}, "the data file items.jsonl"),
        ({"eval__models": ["dens"]}, "eval.models"),
        ({"eval__models": ["merged"]}, "run `lors merge` first"),
        ({"eval__models": []}, "at least 1 item"),
    ],
)
def test_what_is_missing_is_said_before_a_model_is_loaded(
    lors: Lors, write_config: WriteConfig, task_dir: Path, tmp_path: Path, change: dict[str, Any], expected: str
) -> None:
    base = {"eval__tasks": ["colours"], "eval__task_dir": str(task_dir), "eval__data_dir": f"{task_dir}/data"}
    config = write_config(**{"eval__models": ["dense"], **base, **change})
    assert expected in lors("eval", config, status=2).stderr
    assert not (tmp_path / "run").exists()


def interrupt_second_perplexity(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Make the second measurement fail as by Ctrl-C; the list grows with each call."""
    calls: list[int] = []

    def interrupted(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return window_losses(*args)

    monkeypatch.setattr(evaluate, "window_losses", interrupted)
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


def test_a_model_of_nan_ends_with_a_message(
    lors: Lors, write_config: WriteConfig, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    model = make_model(tmp_path / "broken")
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    result = lors("eval", write_config(model=str(model), eval__models=["dense"]), status=1)
    assert "NaN" in result.stderr
    assert not (tmp_path / "run/eval").exists()


@needs_shared_data
def test_the_shipped_data_sets(lors: Lors, write_config: WriteConfig, tmp_path: Path) -> None:
    tasks = ["arc_easy_local", "boolq_local", "winogrande_local", "hellaswag_local", "rte_local", "openbookqa_local"]
    config = write_config(
        eval={
            "models": ["dense"],
            "tasks": tasks,
            "task_dir": str(SHARED_DATA / "lm_eval_tasks"),
            "data_dir": str(SHARED_DATA),
            "limit": 5,
            "perplexity": {"dataset": str(SHARED_DATA / "c4_300.jsonl.gz"), "sequence_length": 64, "samples": 3},
        }
    )
    lors("eval", config)
    found = results(tmp_path)["models"]["dense"]["tasks"]
    assert set(found) == set(tasks)
    assert all(metrics["n"] == 5 for metrics in found.values())
