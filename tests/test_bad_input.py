"""A wrong request ends with exit 2 and one message that says everything, before work starts and losing nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import Result

Lors = Callable[..., Result]
WriteConfig = Callable[..., Path]


def said(result: Result, *parts: str) -> None:
    """One message with file, key, expected, got and remedy, and no traceback."""
    for part in ("error: ", "expected: ", "got: ", "remedy: ", *parts):
        assert part in result.stderr, result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("stage", "changes", "parts"),
    [
        ("prune", {"prune__sparsity": 1.5}, ["prune.sparsity", "1.5"]),
        ("prune", {"prune__sparsity": "5:4"}, ["prune.sparsity", "'5:4'"]),
        ("prune", {"prune__sparsity": "2:5"}, ["prune.sparsity", "2:5", "M dividing"]),
        ("prune", {"prune__method": "wandaa"}, ["prune.method", "did you mean 'wanda'?"]),
        ("prune", {"prune__metod": "wanda"}, ["prune.metod", "did you mean 'method'?"]),
        ("prune", {"prune": ...}, ["prune", "a section prune:"]),
        ("prune", {"device": "cuda:77"}, ["device", "cuda:77"]),
        ("prune", {"model": "/nowhere/model"}, ["model", "/nowhere/model"]),
        ("prune", {"prune__calibration__samples": 10**5}, ["prune.calibration.dataset", "100000 windows"]),
        ("prune", {"prune__calibration__dataset": "/nowhere.jsonl"}, ["prune.calibration.dataset", "does not exist"]),
        ("train", {}, ["train.input", "run `lors prune` first"]),
        ("train", {"train__input": "/nowhere"}, ["train.input", "/nowhere"]),
        ("merge", {}, ["merge.input", "run `lors prune` first"]),
        ("eval", {}, ["eval.models", "run `lors prune` first"]),
        ("run", {"train__rank": 33}, ["train.rank", "33", "at most 16"]),
        ("run", {"train__method": "spp", "train__rank": 5}, ["train.rank", "divides"]),
        ("run", {"train__target_modules": ["q_prj"]}, ["train.target_modules", "did you mean 'q_proj'?"]),
        ("run", {"train__dataset": "/nowhere.jsonl"}, ["train.dataset", "does not exist"]),
        ("run", {"train__sequence_length": 10**6}, ["train.dataset", "1000000 tokens"]),
        ("run", {"train__dropout": 0.5}, ["train", "dropout"]),
        ("run", {"eval__perplexity__dataset": "/nowhere.txt"}, ["eval.perplexity.dataset", "does not exist"]),
        ("run", {"eval__tasks": ["lors_quizz"]}, ["eval.tasks", "lors_quiz"]),
        ("run", {"prune": ..., "train": ..., "merge": ..., "eval": ...}, ["CONFIG", "at least one"]),
    ],
)
def test_wrong_requests(
    lors: Lors, write_config: WriteConfig, tmp_path: Path, stage: str, changes: dict[str, Any], parts: list[str]
) -> None:
    config = write_config(**changes)
    said(lors(stage, config, status=2), str(config), *parts)
    assert not (tmp_path / "run").exists()


def test_the_faults_of_all_stages_are_said_at_once(lors: Lors, write_config: WriteConfig) -> None:
    config = write_config(prune__sparsity="2:5", train__rank=99, eval__tasks=["lors_quizz"])
    said(lors("run", config, status=2), "prune.sparsity", "train.rank", "eval.tasks")
    shared = lors("run", write_config(model="/nowhere/model"), status=2)
    assert shared.stderr.count("expected: ") == 1


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("", ["at least one row", "empty"]),
        ('{"question": "a"}\n', ["train.dataset.format", "question"]),
        ('{"instruction": "a", "input": "b"}\n', ["fields ['input', 'instruction']"]),
        ('{"text": "short"}\n', ["text for 1 windows"]),
        ('{"text": "a"\n', ["line 1"]),
    ],
)
def test_wrong_data(lors: Lors, write_config: WriteConfig, tmp_path: Path, content: str, parts: list[str]) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text(content)
    said(lors("run", write_config(train__dataset=str(data)), status=2), str(data), *parts)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", ["model: [", "model: a\nmodel: b", "", "- a", "a: !!python/name:os.system"])
def test_malformed_yaml(lors: Lors, tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    said(lors("run", path, status=2), str(path))


def test_a_missing_config(lors: Lors, tmp_path: Path) -> None:
    said(lors("run", tmp_path / "no.yaml", status=2), "no such file")


def test_an_output_directory_that_holds_something_else(lors: Lors, write_config: WriteConfig, tmp_path: Path) -> None:
    (tmp_path / "run/pruned").mkdir(parents=True)
    (tmp_path / "run/pruned/thesis.txt").write_text("precious")
    for force in ([], ["--force"]):
        said(lors("prune", write_config(), *force, status=2), "output_dir", "something else")
    assert (tmp_path / "run/pruned/thesis.txt").read_text() == "precious"
    (tmp_path / "file").write_text("x")
    said(lors("prune", write_config(output_dir=str(tmp_path / "file")), status=2), "output_dir", "a directory")


def test_a_dense_model_has_nothing_to_adapt_unless_named(
    lors: Lors, write_config: WriteConfig, dense: Path, tmp_path: Path
) -> None:
    config = write_config(train__input=str(dense))
    said(lors("train", config, status=2), "train.target_modules", "none of whose linears has zeros")
    lors("train", config, "train.target_modules=['*']")


@pytest.mark.parametrize("damage", ["cut", "header", "missing", "shape", "nan"])
def test_damaged_weights(
    lors: Lors, write_config: WriteConfig, make_model: Callable[..., Path], tmp_path: Path, damage: str
) -> None:
    model = make_model(tmp_path / "m")
    path = model / "model.safetensors"
    tensors, content = load_file(path), path.read_bytes()
    key = "model.layers.1.self_attn.q_proj.weight"
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "header":
        path.write_bytes(b"\xff" * 100)
    else:
        if damage == "missing":
            del tensors[key]
        elif damage == "shape":
            tensors[key] = torch.zeros(3, 3)
        else:
            tensors[key][0, 0] = float("nan")
        save_file(tensors, path, metadata={"format": "pt"})
    result = lors("prune", write_config(model=str(model)), status=1 if damage == "nan" else 2)
    assert "Traceback" not in result.output
    assert key.removesuffix(".weight") in result.stderr or str(path) in result.stderr
    if damage == "nan":
        assert not (tmp_path / "run/pruned").exists()
    else:  # the headers tell, before any work
        said(result, "model", "again")
        assert not (tmp_path / "run").exists()


def test_a_write_that_fails_publishes_nothing(
    lors: Lors, write_config: WriteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import resource

    config = write_config()
    lors("prune", config)
    lors("train", config)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for stage, output in (("prune", "pruned"), ("train", "adapter"), ("merge", "merged")):
        resource.setrlimit(resource.RLIMIT_FSIZE, (15_000, hard))  # a file that grows beyond fails as on a full disk
        try:
            result = lors(stage, config, "--force", status=1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert "cannot write" in result.stderr
        assert stage != "merge" or not (tmp_path / f"run/.{output}.partial").exists()
    assert not (tmp_path / "run/merged").exists()
    for name in ("pruned", "adapter"):  # the old ones are still there
        assert (tmp_path / "run" / name / "lors.json").is_file()
