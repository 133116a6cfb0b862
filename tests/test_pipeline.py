"""Whose output belongs to whom: what happens when a run is repeated with something changed."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from tests.evaluation.test_evaluate import interrupt_second_perplexity

Lors = Callable[..., Result]
WriteConfig = Callable[..., Path]


def read(path: Path) -> dict[str, object]:
    manifest: dict[str, object] = json.loads((path / "lors.json").read_text())
    return manifest


def test_force_with_another_model_adapts_and_proves_the_new_one(
    lors: Lors, write_config: WriteConfig, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    config = write_config()
    lors("run", config)
    deeper = make_model(tmp_path / "deeper", num_hidden_layers=3)
    lors("run", config, f"model={deeper}", "--force")
    assert read(tmp_path / "run/adapter")["linears"] == 21
    assert len(read(tmp_path / "run/merged")["modules"]) == 21  # type: ignore[arg-type]


def test_merging_into_another_model_than_the_trained_is_refused_in_a_run(
    lors: Lors, write_config: WriteConfig, tmp_path: Path
) -> None:
    config = write_config()
    lors("prune", config)
    other = f"merge.input={tmp_path}/run/pruned"
    refused = lors("run", config, f"output_dir={tmp_path}/second", "prune.sparsity=0.3", other, status=2)
    assert "merge.input" in refused.stderr
    assert "the model that train adapts" in refused.stderr


def test_changed_settings_of_a_later_stage_are_refused_before_the_first(
    lors: Lors, write_config: WriteConfig, tmp_path: Path
) -> None:
    import shutil

    config = write_config()
    lors("run", config)
    shutil.rmtree(tmp_path / "run/pruned")
    for option in ([], ["--dry-run"]):
        assert "train: rank" in lors("run", config, "train.rank=2", *option, status=2).stderr
    assert not (tmp_path / "run/pruned").exists()
    lors("run", config)  # the same request gives the same pruned model, so the rest is up to date
    assert (tmp_path / "run/pruned/lors.json").is_file()


def test_an_interrupted_force_goes_on(
    lors: Lors, write_config: WriteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(eval__models=["dense", "pruned"])
    lors("prune", config)
    lors("eval", config)
    interrupt_second_perplexity(monkeypatch)
    lors("eval", config, "--force", status=130)
    assert read(tmp_path / "run/eval")["stage"] == "eval"  # the old result stays until the new one is whole
    assert "dense was measured before the interruption" in lors("eval", config, "--force").stderr


def test_a_changed_chat_template_or_data_file_is_noticed(
    lors: Lors, write_config: WriteConfig, jsonl: Callable[..., Path], make_model: Callable[..., Path], tmp_path: Path
) -> None:
    model = make_model(tmp_path / "own")
    data = jsonl([{"text": "some words and more words " * 40}])
    config = write_config(model=str(model), prune__calibration__dataset=str(data), prune__calibration__samples=2)
    lors("prune", config)
    template = model / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    assert "inputs.model" in lors("prune", config, status=2).stderr
    template.write_text(template.read_text()[:-1])
    jsonl([{"text": "other words and more words " * 40}])
    assert "calibration_source.digest" in lors("prune", config, status=2).stderr


def test_the_manifest_names_the_model_and_the_config(
    lors: Lors, write_config: WriteConfig, dense: Path, tmp_path: Path
) -> None:
    lors("prune", write_config())
    manifest = read(tmp_path / "run/pruned")
    assert manifest["input_paths"] == {"model": str(dense)}
    assert manifest["config"]["prune"]["sparsity"] == "2:4"  # type: ignore[index]


def test_several_processes_are_refused_by_other_stages(
    lors: Lors, write_config: WriteConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "the others without" in lors("merge", write_config(), status=2).stderr
