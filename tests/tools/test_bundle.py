"""A bundle that was made beside a hub runs where there is neither that hub nor what was local."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
import yaml

from lors_cli import offline
from lors_cli.config.schema import Config
from lors_cli.errors import RequestError
from lors_cli.models import source
from lors_cli.tools import bundle, taken, wheels
from tests import hub
from tests.test_hub import data_set

WriteConfig = Callable[..., Path]


def test_a_bundle_runs_elsewhere_and_says_what_it_lacks(write_config: WriteConfig, dense: Path, tmp_path: Path) -> None:
    served, own = tmp_path / "hub", tmp_path / "own"
    shutil.copytree(dense, served / "models/someone/pico")
    texts = [{"text": f"{number} and {number * number % 7}, " * 20} for number in range(40)]
    data_set(served / "datasets/someone/texts", "plain", texts, "train", "test")
    (own / "rows/en").mkdir(parents=True)
    for name, part in (("a", texts[:20]), ("b", texts[20:])):
        (own / f"rows/en/{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    config = write_config(
        model="someone/pico",
        output_dir="out",
        prune__calibration__dataset="rows/en/a.jsonl",
        train__dataset="rows/*/*.jsonl",
        eval={
            "models": ["merged", str(dense)],
            "perplexity": {"dataset": {"path": "someone/texts", "split": "test"}, "sequence_length": 32, "samples": 2},
        },
    )

    def lors(*arguments: str, address: str, folder: Path, status: int = 0) -> str:
        environment = {name: value for name, value in os.environ.items() if name not in offline.VARIABLES}
        environment |= {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home")}
        command = [sys.executable, "-m", "lors_cli", *arguments]
        done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == status, done.stderr
        return done.stdout + done.stderr

    with hub.serve(served) as (address, _):
        said = lors(
            "bundle",
            str(config),
            str(tmp_path / "made"),
            "train.max_steps=1",
            "--no-wheels",
            address=address,
            folder=own,
        )
    assert "bundle: dense: " in said
    assert "bundle: merged: " not in said, "it is made there"
    assert not (tmp_path / "home").exists()
    shutil.rmtree(own)
    there = tmp_path / "there"
    there.mkdir()
    shutil.copytree(tmp_path / "made", there / "bundle", symlinks=True)

    lors("run", "--bundle", "bundle", "eval.batch_size=1", address=address, folder=there)
    results = json.loads((there / "out/eval/results.json").read_text())
    assert [name.rpartition("/")[2] for name in results["models"]] == ["merged", dense.name]
    assert json.loads((there / "out/adapter/lors.json").read_text())["steps"] == 1

    facts = json.loads((there / "bundle/bundle.json").read_text())
    assert facts["command"].endswith("made train.max_steps=1 --no-wheels".replace("made", str(tmp_path / "made")))
    rows, model = (
        next(name for name in facts["files"] if name.endswith(end)) for end in ("en/b.jsonl", "model.safetensors")
    )
    (there / "bundle" / rows).unlink()
    with (there / "bundle" / model).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x7f")
    said = " ".join(lors("run", "--bundle", "bundle", address=address, folder=there, status=2).split())
    for words in (rows, "missing", model, "other content", "lors bundle", "--force"):
        assert words in said, words


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    whole: dict[str, Any] = {"version": 1, "command": "lors bundle a b", "paths": {}, "files": {}}
    for content, said in (
        (None, "lors bundle"),
        ({"version": 7, "command": "lors bundle a b"}, "lors bundle a b --force"),
        ([whole], "a damaged file: ValueError"),
        *(({key: whole[key] for key in whole if key != name}, f"damaged.*{name}") for name in ("command", "paths")),
        ({**whole, "files": []}, "a damaged file"),
        ({**whole, "files": {"config.yaml": {"bytes": 3}}}, "damaged.*sha256"),
        ({**whole, "paths": {"model": 3}}, "a value of another type"),
    ):
        if content:
            (tmp_path / bundle.NAME).write_text(json.dumps(content))
        with pytest.raises(RequestError, match=said):
            bundle.config(tmp_path, [])


def test_all_that_is_missing_is_named_at_once(write_config: WriteConfig, dense: Path, tmp_path: Path) -> None:
    there = {"prune__method": "from_mask", "prune__mask": "mask.safetensors", "prune__calibration": ...}
    config = write_config(**there, train__dataset="rows.jsonl", eval__models=["dense"], eval__task_dir="tasks")
    with pytest.raises(RequestError) as caught:
        bundle.make(config, [], tmp_path / "made", with_wheels=False)
    found = [problem.key for problem in caught.value.problems]
    assert len(found) == len(set(found))
    assert {"prune.mask", "train.dataset", "eval.task_dir"} <= set(found)
    assert all("not exist" in problem.got for problem in caught.value.problems if problem.key in found)
    assert not (tmp_path / "made").exists()


def test_the_folder_at_hand_is_taken_by_its_name_and_not_with_the_bundle_in_it(
    write_config: WriteConfig, dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here := tmp_path / "tasks").mkdir()
    (here / "a.yaml").write_text("task: a")
    monkeypatch.chdir(here)
    assert taken.copy(".", None, tmp_path / "place") == "tasks"
    assert (tmp_path / "place/tasks/a.yaml").read_text() == "task: a"
    config = write_config(prune=..., train=..., merge=..., eval__models=["dense"], eval__task_dir=".")
    with pytest.raises(RequestError, match=r"outside of the folder that eval\.task_dir names"):
        bundle.make(config, [], Path("bundled"), with_wheels=False)
    assert [path.name for path in here.iterdir()] == ["a.yaml"]


def test_a_sweep_file_that_is_taken_for_a_config_is_sent_to_the_commands_for_it(tmp_path: Path) -> None:
    (path := tmp_path / "sweep.yaml").write_text("config: config.yaml\narms: {lors: {}}\n")
    with pytest.raises(
        RequestError, match=r"a sweep file(.|\n)*`lors sweep .*sweep.yaml` runs it; `lors bundle` takes"
    ):
        bundle.make(path, [], tmp_path / "made", with_wheels=False)
    assert not (tmp_path / "made").exists()


def test_every_name_of_a_model_or_a_folder_is_taken_along(tmp_path: Path, dense: Path) -> None:
    """Of a config that has all keys: none that has text with a path in it is forgotten when the config grows."""
    free = {
        "output_dir",
        "device",
        "formulation",
        "match",
        "format",
        "name",
        "split",
        "revision",
        "data_files",
        "field",
    }
    free |= {"system"}
    known = {key.rpartition(".")[2] for key in taken.OTHERS} | {
        "model",
        "input",
        "adapter",
        "resume_from",
        "teacher",
        "path",
    }
    schema = yaml.safe_load(json.dumps(Config.model_json_schema()))
    text = set()
    for definition in [schema, *schema["$defs"].values()]:
        for name, field in definition.get("properties", {}).items():
            kinds = [field, *field.get("anyOf", [])]
            if any(kind.get("type") == "string" and "enum" not in kind and "const" not in kind for kind in kinds):
                text.add(name)
    assert text - free <= known, "decide whether these name files: then taken.OTHERS, else free"
    assert {"input", "adapter", "teacher", "mask", "task_dir", "data_dir"} <= text


def test_a_model_in_a_folder_called_dense_and_a_teacher_of_a_hub_are_taken_along(
    write_config: WriteConfig, dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(dense, tmp_path / "dense")
    monkeypatch.chdir(tmp_path)
    fetched: list[str] = []

    def resolve(name: str, key: str = "model", **_: object) -> Path:
        fetched.append(f"{key}: {name}")
        return dense

    monkeypatch.setattr(source, "resolve", resolve)
    path = write_config(model="dense", train__distill={"teacher": "someone/large"})
    bundle.make(path, [], tmp_path / "made", with_wheels=False)
    assert (tmp_path / "made/files/0/dense/config.json").is_file()
    assert "train.distill.teacher: someone/large" in fetched

    bundle.make(path, ["train.distill.teacher=dense"], tmp_path / "again", with_wheels=False)
    assert list(json.loads((tmp_path / "again" / bundle.NAME).read_text())["paths"]) == ["model"]


def test_the_wheels_are_what_is_installed() -> None:
    names = {one.metadata["Name"].lower(): one for one in wheels.needed(distribution("lors_cli"))}
    assert {"torch", "transformers", "typer"} <= names.keys()
    assert {"sympy", "aiohttp"} <= names.keys()  # of torch alone, and of an extra that one of two asks for
    assert not {"lors_cli", "pytest"} & names.keys()
