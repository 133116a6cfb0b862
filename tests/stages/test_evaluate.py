"""`lors eval`: the order of the models, and what is refused or named before one is loaded."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from tests.evaluation.tasks import CHOICE, results

Lors = Callable[..., Result]
WriteConfig = Callable[..., Path]


@pytest.mark.parametrize("changed", ["items.jsonl", "group.yaml", "words.yaml", "base.yaml", "code.py"])
def test_changed_task_files_are_noticed(
    lors: Lors, write_config: WriteConfig, task_dir: Path, tmp_path: Path, changed: str
) -> None:
    (task_dir / "group.yaml").write_text(json.dumps({"group": "all", "task": ["words"]}))
    (task_dir / "base.yaml").write_text((task_dir / "words.yaml").read_text().replace('"words"', '"base"'))
    (task_dir / "words.yaml").write_text("include: base.yaml\ntask: words\nprocess_docs: !function code.same\n")
    (task_dir / "code.py").write_text("def same(docs):\n    return docs\n")
    config = write_config(
        eval__models=["dense"],
        eval__tasks=["all"],
        eval__task_dir=str(task_dir),
        eval__limit=2,
        eval__trust_task_code=True,
    )
    lors("eval", config)
    assert "up to date" in lors("eval", config).stderr
    file = task_dir / changed
    file.write_text(file.read_text() + "\n")
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
        ({"eval__tasks": ["letterz"]}, "letters"),
        ({"eval__task_dir": "/nowhere"}, "an existing directory"),
        ({"eval__data_dir": "/"}, "the data file train.jsonl"),
        ({"eval__models": ["dens"]}, "eval.models"),
        ({"eval__models": ["merged"]}, "run `lors merge` first"),
        ({"eval__models": []}, "a list of at least 1"),
    ],
)
def test_what_is_missing_is_said_before_a_model_is_loaded(
    lors: Lors, write_config: WriteConfig, task_dir: Path, tmp_path: Path, change: dict[str, Any], expected: str
) -> None:
    base = {"eval__tasks": ["words"], "eval__task_dir": str(task_dir)}
    config = write_config(**{"eval__models": ["dense"], **base, **change})
    assert expected in lors("eval", config, status=2).stderr
    assert not (tmp_path / "run").exists()


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
        f"{task_dir / 'broken.yaml'}: eval.task_dir: output_type",
        "'somebody/some-model', which is not a local path",
        "'somebody/some-text', which is not a local file",
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
