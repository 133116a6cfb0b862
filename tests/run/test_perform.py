"""Inputs that change while a stage reads them: nothing is published of a mixture, and the file is named."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from lors_cli.artifacts import locks
from lors_cli.evaluation import evaluate
from lors_cli.models import load
from lors_cli.sequential.engine import Pruning
from lors_cli.stages import merged_weight
from lors_cli.training import train

Lors = Callable[..., Any]
WriteConfig = Callable[..., Path]
Action = Callable[[Path], None]
# What a stage does in the middle of its work, and what it publishes.
MIDDLE: dict[str, tuple[object, str, str]] = {
    "prune": (Pruning, "_prune", "pruned"),
    "train": (train, "_run", "adapter"),
    "merge": (merged_weight, "effective", "merged"),
    "eval": (evaluate, "of_losses", "eval"),
}


def by_rename(path: Path) -> None:
    changed = path.with_suffix(".other")
    changed.write_bytes(flipped(path))
    status = path.stat()
    os.utime(changed, ns=(status.st_atime_ns, status.st_mtime_ns))
    changed.rename(path)


def in_place(path: Path) -> None:
    status = path.stat()
    path.write_bytes(flipped(path))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # with the time that it had


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flipped(path: Path) -> bytes:
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    return bytes(content)


def touched(path: Path) -> None:
    path.chmod(0o600)
    path.touch()
    copy = path.with_suffix(".copy")
    shutil.copyfile(path, copy)
    copy.rename(path)


def meanwhile(monkeypatch: pytest.MonkeyPatch, stage: str, act: Callable[[], object]) -> None:
    """Act once, when the stage is in the middle of its work."""
    owner, name, _ = MIDDLE[stage]
    original = getattr(owner, name)
    acted: list[bool] = []

    def acting(*args: Any, **kwargs: Any) -> Any:
        if not acted:
            acted.append(True)
            act()
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, acting)


@pytest.fixture
def request_of(dense: Path, tmp_path: Path, write_config: WriteConfig, jsonl: Callable[..., Path]) -> Path:
    """A config all of whose inputs may be written to."""
    shutil.copytree(dense, tmp_path / "model")
    texts = [{"text": f"The {n} cats sat on {n} mats and looked at the moon for hours. " * 6} for n in range(24)]
    rows = {name: str(jsonl(texts, f"{name}.jsonl")) for name in ("calibration", "data", "perplexity")}
    return write_config(
        model=str(tmp_path / "model"),
        prune__calibration__dataset=rows["calibration"],
        train__dataset=rows["data"],
        eval__perplexity__dataset=rows["perplexity"],
        eval__models=["dense", "pruned"],
    )


READ = {
    "prune": ["model/model.safetensors", "model/config.json", "calibration.jsonl"],
    "train": ["run/pruned/model.safetensors", "run/pruned/tokenizer.json", "data.jsonl"],
    "merge": ["run/pruned/model.safetensors", "run/adapter/adapter_model.safetensors", "run/pruned/lors.json"],
    "eval": ["model/model.safetensors", "run/pruned/model.safetensors", "perplexity.jsonl"],
}
BEFORE = {"prune": [], "train": ["prune"], "merge": ["prune", "train"], "eval": ["prune"]}


@pytest.mark.parametrize("stage", MIDDLE)
def test_a_change_ends_the_stage_and_names_the_file(
    stage: str, request_of: Path, lors: Lors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for earlier in BEFORE[stage]:
        lors(earlier, request_of)
    actions: list[Action] = [by_rename, in_place, truncated, Path.unlink]
    start = list(MIDDLE).index(stage)
    for name, action in zip(READ[stage], (actions * 2)[start:], strict=False):
        kept = (tmp_path / name).read_bytes()
        with monkeypatch.context() as patch:
            meanwhile(patch, stage, lambda act=action, name=name: act(tmp_path / name))  # type: ignore[misc]
            said = lors(stage, request_of, status=1).stderr
        assert str(tmp_path / name) in said
        assert "is gone" in said if action == Path.unlink else "has changed since" in said
        assert not (tmp_path / "run" / MIDDLE[stage][2]).exists()
        (tmp_path / name).write_bytes(kept)
        shutil.rmtree(tmp_path / f"run/.{MIDDLE[stage][2]}.partial", ignore_errors=True)  # what was done before


@pytest.mark.parametrize("stage", MIDDLE)
def test_the_same_content_with_other_times_is_the_same_input(
    stage: str, request_of: Path, lors: Lors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for earlier in BEFORE[stage]:
        lors(earlier, request_of)
    meanwhile(monkeypatch, stage, lambda: list(map(touched, [tmp_path / name for name in READ[stage]])))
    lors(stage, request_of)
    assert (tmp_path / "run" / MIDDLE[stage][2] / "lors.json").is_file()


def test_a_new_file_that_counts_and_a_directory_behind_a_link(
    request_of: Path, lors: Lors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, new = tmp_path / "model", tmp_path / "model/added_tokens.json"
    with monkeypatch.context() as patch:
        meanwhile(patch, "prune", lambda: new.write_text("{}"))
        assert f"{model} has a new file, added_tokens.json" in lors("prune", request_of, status=1).stderr
    new.unlink()
    shutil.copytree(model, tmp_path / "other")
    in_place(tmp_path / "other/model.safetensors")
    model.rename(tmp_path / "one")
    model.symlink_to(tmp_path / "one")

    def switch() -> None:
        model.unlink()
        model.symlink_to(tmp_path / "other")

    meanwhile(monkeypatch, "prune", switch)
    assert f"{model / 'model.safetensors'} has changed" in lors("prune", request_of, "--force", status=1).stderr
    assert not (tmp_path / "run/pruned").exists()


def test_what_is_put_back_was_not_read(
    request_of: Path, lors: Lors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_model: Callable[..., Path]
) -> None:
    lors("prune", request_of)
    lors("eval", request_of)
    right = json.loads((tmp_path / "run/eval/results.json").read_text())
    make_model(tmp_path / "other", seed=5)
    original = AutoModelForCausalLM.from_pretrained
    times: list[Path] = []

    def swapped(directory: Path, **options: Any) -> Any:
        times.append(directory)
        if len(times) > 1:
            return original(directory, **options)
        directory.rename(tmp_path / "aside")
        (tmp_path / "other").rename(directory)
        try:
            return original(directory, **options)
        finally:
            directory.rename(tmp_path / "other")
            (tmp_path / "aside").rename(directory)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", swapped)
    lors("eval", request_of, "--force")
    assert len(times) == 3  # one model was read twice
    assert json.loads((tmp_path / "run/eval/results.json").read_text()) == right


def test_what_was_loaded_is_not_the_file(dense: Path, tmp_path: Path) -> None:

    shutil.copytree(dense, tmp_path / "model")
    model = load.load_model(tmp_path / "model", "auto", torch.device("cpu"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    file = tmp_path / "model/model.safetensors"
    with file.open("r+b") as opened:
        opened.seek(file.stat().st_size // 2)
        opened.write(bytes(file.stat().st_size // 2))
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())


def test_what_is_being_read_is_not_replaced(request_of: Path, lors: Lors, tmp_path: Path) -> None:
    lors("prune", request_of)
    before = (tmp_path / "run/pruned/lors.json").read_bytes()
    with locks.reading([tmp_path / "run/pruned"]), locks.reading([tmp_path / "run/pruned"]):
        said = lors("prune", request_of, "--force", status=1).stderr
        assert f"another lors process is reading {tmp_path / 'run/pruned'}" in said
        assert (tmp_path / "run/pruned/lors.json").read_bytes() == before
        lors("eval", request_of)  # which reads it too
    lors("prune", request_of, "--force")
