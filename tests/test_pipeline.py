"""Whose output belongs to whom: what happens when a run is repeated with something changed."""

import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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


@pytest.fixture
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


SMALL = {
    "method": "lora",
    "rank": 2,
    "dataset": "python-topics",
    "sequence_length": 32,
    "batch_size": 2,
    "max_steps": 2,
}
LORAM: dict[str, Any] = {
    "prune": {"method": "structured_random", "ratio": 0.5, "keep_first": 1, "keep_last": 0},
    "align": SMALL,
    "train": {**SMALL, "save_steps": 1},
    "recover": {},
}


@pytest.mark.parametrize(("umask", "changes"), [(0o022, {"train__save_steps": 2}), (0o027, LORAM)], indirect=["umask"])
def test_everything_gets_the_mode_that_the_umask_gives(
    umask: int, changes: dict[str, Any], lors: Lors, write_config: WriteConfig, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    lors("run", write_config(**changes))
    lors("pack", run / "merged", run / "packed")
    lors("unpack", run / "packed", run / "unpacked")
    lors("report", run, "--output", run / "report")
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in run.rglob("*")}
    assert {path.suffix for path in modes} >= {".safetensors", ".json", ".md", ".html", ".log"}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o666 & ~umask}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o777 & ~umask}


def test_an_experiment_is_found_again_from_anywhere(
    lors: Lors,
    write_config: WriteConfig,
    jsonl: Callable[..., Path],
    make_model: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    experiment, elsewhere = tmp_path / "experiment", tmp_path / "else" / "where"
    elsewhere.mkdir(parents=True)
    (make_model(experiment / "dense") / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    shutil.move(jsonl([{"text": "some words and more words " * 40}]), experiment / "data.jsonl")

    def config(place: str) -> Path:
        data, text = f"{place}/data.jsonl", {"sequence_length": 16, "samples": 2}
        return write_config(
            model=f"{place}/dense",
            output_dir=f"{place}/run",
            prune__calibration={"dataset": data, **text},
            train={**SMALL, "method": "lors", "dataset": data, "sequence_length": 16, "eval_dataset": data},
            eval={"models": ["dense", "merged"], "perplexity": {"dataset": data, **text}},
        )

    monkeypatch.chdir(experiment)
    lors("run", config("."))
    run = experiment / "run"
    before = lors("report", run, "--format", "json").stdout
    monkeypatch.chdir(elsewhere)
    for folder in ("pruned", "adapter", "merged", "eval"):
        assert all(
            Path(path).is_dir() for path in json.loads((run / folder / "lors.json").read_text())["input_paths"].values()
        )
    base = json.loads((run / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert Path(base).samefile(run / "pruned")
    # the same content under other paths is the same request
    for stage in ("prune", "train", "merge", "eval"):
        for place in (str(experiment), "../../experiment"):
            assert "is up to date" in lors(stage, config(place)).stderr
    other = make_model(elsewhere / "dense", seed=1)
    refused = lors("prune", config(str(experiment)), f"model={other.name}", status=2)
    assert "prune: inputs.model" in refused.stderr
    assert lors("report", run, "--format", "json").stdout == before

    moved = tmp_path / "moved"
    experiment.rename(moved)
    for stage in ("prune", "train", "merge", "eval"):
        assert "is up to date" in lors(stage, config(str(moved))).stderr
    assert lors("report", moved / "run", "--format", "json").stdout.replace("moved/", "experiment/") == before
    lors("inspect", moved / "run" / "adapter", "--plots")  # the model that it belongs to has moved with it
    (moved / "run" / "merged" / "README.md").unlink()  # it is made anew, from what is recorded
    shown = lors("push", moved / "run" / "merged", "owner/name", "--dry-run").stdout
    assert "license: mit" in shown
    assert all(f"\n{step}" in shown for step in ("1. Pruned", "2. Trained", "3. Merged"))
