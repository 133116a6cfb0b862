"""A bundle of a sweep file has what every run of it reads, and is the same sweep without the originals."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lors_cli import offline
from lors_cli.errors import RequestError
from lors_cli.search import bundled
from lors_cli.search.study import Study
from lors_cli.tools import bundle

Written = Callable[..., Path]


def rows(path: Path, name: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [{"text": f"{name} {number} and {number * number % 7}, " * 20} for number in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in texts))


def lors(folder: Path, *arguments: str, status: int = 0) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in offline.VARIABLES}
    command = [sys.executable, "-m", "lors_cli", *arguments]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def own(write_config: Callable[..., Path], dense: Path, tmp_path: Path) -> Path:
    """A folder with a sweep file that names a model, data and configs in every way that there is."""
    folder = tmp_path / "own"
    for name in ("a", "b", "calibration", "further", "held_out", "unused"):
        rows(folder / f"data/{name}.jsonl", name)
    shutil.copytree(dense, folder / "models/pico")
    config = write_config(
        model="someone/pico",
        output_dir="out",
        prune__calibration__dataset="data/calibration.jsonl",
        train__dataset="data/unused.jsonl",
        train__max_steps=1,
        train__init="random",
        eval={"models": ["dense", "merged"], "perplexity": {"dataset": "data/unused.jsonl", "sequence_length": 32}},
    )
    for name in ("config.yaml", "second.yaml"):
        shutil.copyfile(config, folder / name)
    content: dict[str, Any] = {
        "config": "config.yaml",
        "output_dir": "out",
        "models": {"pico": "models/pico"},
        "set": {"eval.perplexity.samples": 2},
        "starts": {"first": {}, "second": {"config": "second.yaml"}, "lacking": {"config": "second.yaml"}},
        "arms": {"lors": {"grid": {"train.dataset": ["data/a.jsonl", "data/[b].jsonl"]}}},
        "choose": {"held_out": "data/held_out.jsonl", "by": "perplexity"},
        "evaluations": {"further": {"eval.perplexity.dataset": "data/further.jsonl"}},
        "optional": ["lacking"],
    }
    content["starts"]["lacking"]["set"] = {"prune.calibration.dataset": "data/lacking.jsonl"}
    (folder / "sweep.yaml").write_text(json.dumps(content))
    return folder


def test_a_bundle_of_a_sweep_runs_elsewhere_and_says_what_it_lacks(own: Path, tmp_path: Path) -> None:
    said = lors(own, "bundle", "sweep.yaml", str(tmp_path / "made"), "train.max_steps=2", "seeds=[3]", "--no-wheels")
    assert "on the other machine: lors sweep --bundle" in said
    facts = json.loads((tmp_path / "made" / bundle.NAME).read_text())
    names = {key for places in facts["located"].values() for key in places}
    data = {f"data/{name}.jsonl" for name in ("a", "[b]", "calibration", "further", "held_out")}
    assert names == {"someone/pico", *data}, "neither what no run reads nor what is left out"
    assert len({place for places in facts["located"].values() for place in places.values()}) == len(names)
    shutil.rmtree(own)
    (there := tmp_path / "there").mkdir()
    shutil.move(tmp_path / "made", there / "bundle")

    said = lors(there, "sweep", "--bundle", "bundle", "only=[first]")
    adapter = min(there.glob("out/first/**/adapter/lors.json"))
    assert "dataset=data-a.jsonl" in str(adapter), "runs have the names that they have without a bundle"
    assert json.loads(adapter.read_text())["steps"] == 2
    assert json.loads(adapter.read_text())["request"]["settings"]["seed"] == 3
    with pytest.raises(RequestError, match="lors sweep --bundle"):
        bundle.config(there / "bundle", [])
    refused = lors(there, "sweep", "--bundle", "bundle", "--models", "pico=/x", status=2)
    assert "leave --models out" in " ".join(refused.split())
    place = there / "bundle" / facts["located"]["files"]["data/further.jsonl"]
    place.unlink()
    with pytest.raises(RequestError) as caught:
        bundle.opened(there / "bundle")
    for words in ("further.jsonl", "missing", "lors bundle sweep.yaml", "--force"):
        assert words in str(caught.value), words


def test_what_a_sweep_lacks_is_named_at_once(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(own)
    for name in ("a", "further"):
        (own / f"data/{name}.jsonl").unlink()
    with pytest.raises(RequestError) as caught:
        bundled.make(Path("sweep.yaml"), [], tmp_path / "made", with_wheels=False)
    said = str(caught.value)
    assert all(name in said for name in ("data/a.jsonl", "data/further.jsonl")), said
    assert not (tmp_path / "made").exists()


def test_files_of_a_sweep_are_found_by_what_its_configs_call_them(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(own)
    shutil.move(own / "data", own / "elsewhere")
    there = {f"data/{name}.jsonl": f"elsewhere/{name}.jsonl" for name in ("a", "[b]", "calibration", "held_out")}
    study = Study(Path("sweep.yaml"), [f"files={json.dumps(there)}"])
    run = study.run(study.rows[0], study.rows[0].grid[1])
    assert run.config.train
    assert run.config.train.sources["dataset"].path == "elsewhere/[b].jsonl"
    assert "data/[b].jsonl" not in str(run.config)
    assert study.file.choose.held_out
    assert study.file.choose.held_out.path == "elsewhere/held_out.jsonl"
    for files, said in (({"c.jsonl": "elsewhere/a.jsonl"}, "a file of the sweep"), ({"a.jsonl": "x"}, "not exist")):
        with pytest.raises(RequestError, match=f"command line(.|\n)*{said}"):
            Study(Path("sweep.yaml"), [f"files={json.dumps(files)}"])
    content = json.loads(Path("sweep.yaml").read_text())
    Path("sweep.yaml").write_text(json.dumps({**content, "files": {"c.jsonl": "elsewhere/a.jsonl"}}))
    with pytest.raises(RequestError, match=r"^sweep.yaml: files.c.jsonl"):
        Study(Path("sweep.yaml"), [])
