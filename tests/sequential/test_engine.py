"""What the pruning engine promises beyond the numbers: interruption, resumption, several processes, targets, masks."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import Result

from lors_cli.sequential import prune_linears
from lors_cli.sequential.record import Record

Lors = Callable[..., Result]
WriteConfig = Callable[..., Path]


def content(directory: Path) -> dict[str, bytes]:
    """All that the model is; manifest and card also say where it was made, and on what."""
    others = ("lors.json", "README.md")
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.name not in others}


def masks(directory: Path) -> dict[str, Tensor]:
    weights = load_file(directory / "model.safetensors")
    return {name.removesuffix(".weight"): tensor != 0 for name, tensor in weights.items() if "proj" in name}


def stop_after(blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """End the process's work, as a signal would, once so many blocks are recorded."""
    original, left = Record.add, [blocks]

    def add(self: Record, *block: Any) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        original(self, *block)

    monkeypatch.setattr(Record, "add", add)


KINDS: list[dict[str, Any]] = [
    {"prune__method": "wanda"},
    {"prune__method": "sparsegpt", "prune__states": "disk"},
    {"prune__method": "sparsegpt", "prune__sequential": "linear"},
    {"prune__method": "sparsegpt", "prune__quantize": {"group_size": 16, "symmetric": False}},
    {"prune__method": "ria", "prune__permute": True, "prune__repair": "dsnot"},
    {"prune__method": "wanda", "prune__sparsity": 0.5, "prune__profile": "owl"},
    {"prune__method": "magnitude"},
    {"prune__tune_blocks": {"steps": 2}, "prune__sequential": "linear", "prune__states": "disk"},
    {"prune__tune_blocks": {"steps": 2, "target": "dense"}, "prune__update": "least_squares"},
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_an_interrupted_run_ends_with_the_same_bytes(
    lors: Lors, write_config: WriteConfig, tmp_path: Path, kind: dict[str, Any]
) -> None:
    config = write_config(**kind)
    lors("prune", config, f"output_dir={tmp_path}/whole")
    phases = 2 if "prune__profile" in kind else 1
    for blocks in range(2 * phases):
        with pytest.MonkeyPatch.context() as patch:
            stop_after(blocks, patch)
            lors("prune", config, status=130)
        assert (tmp_path / "run/.pruned.partial").exists() == (blocks > 0)
        resumed = lors("prune", config)
        assert ("going on at block" in resumed.stderr) == (blocks % 2 == 1)
        assert content(tmp_path / "run/pruned") == content(tmp_path / "whole/pruned")
        (tmp_path / "run/pruned").rename(tmp_path / f"done{blocks}")


def test_where_the_states_are_kept_does_not_matter(lors: Lors, write_config: WriteConfig, tmp_path: Path) -> None:
    tuning = {"steps": 2, "learning_rate": 1e-3, "target": "dense"}
    tuned = {"prune__update": "least_squares", "prune__tune_blocks": tuning}
    config = write_config(prune__method="sparsegpt", **tuned)
    for place in ("host", "disk"):
        lors("prune", config, f"prune.states={place}", f"output_dir={tmp_path}/{place}")
    assert content(tmp_path / "host/pruned") == content(tmp_path / "disk/pruned")


def test_leftovers_of_another_request_are_refused(
    lors: Lors, write_config: WriteConfig, jsonl: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = jsonl([{"text": "some words and more words " * 40}])
    config = write_config(prune__calibration__dataset=str(data), prune__calibration__samples=2)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(1, patch)
        lors("prune", config, status=130)
    for option in ("prune.sparsity=0.5", "prune.calibration.samples=3", "dtype=bfloat16"):
        refused = lors("prune", config, option, status=2).stderr
        assert "was being made when its run was interrupted" in refused
        assert option.split("=")[0].removeprefix("prune.") in refused
    data.write_text(data.read_text() + '{"text": "and a row more"}\n')
    assert "calibration_source.digest" in lors("prune", config, status=2).stderr
    assert "going on" not in lors("prune", config, "--force").stderr


def test_sigterm_stops_after_the_block(
    lors: Lors, write_config: WriteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config()
    with monkeypatch.context() as patch:
        original = prune_linears.prune

        def terminated(*args: Any) -> Any:
            os.kill(os.getpid(), signal.SIGTERM)
            return original(*args)

        patch.setattr(prune_linears, "prune", terminated)
        stopped = lors("prune", config, status=130)
    assert "stopped by SIGTERM after block 1 of 2" in stopped.stderr
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert "going on at block 2 of 2" in lors("prune", config).stderr


def torchrun(config: Path, *options: str, processes: int = 2) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    command = [*launcher, "--standalone", "-m", "lors_cli", "prune", str(config), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("method", ["sparsegpt", "wanda"])
def test_two_processes_make_the_masks_of_one(
    lors: Lors, write_config: WriteConfig, tmp_path: Path, method: str
) -> None:
    config = write_config(prune__method=method, prune__calibration__samples=7)
    lors("prune", config, f"output_dir={tmp_path}/one")
    with pytest.MonkeyPatch.context() as patch:  # two processes go on where one was interrupted
        stop_after(1, patch)
        lors("prune", config, status=130)
    run = torchrun(config)
    assert run.returncode == 0, run.stderr
    assert "going on at block 2 of 2" in run.stderr
    assert run.stdout.strip() == str(tmp_path / "run/pruned")
    one, two = masks(tmp_path / "one/pruned"), masks(tmp_path / "run/pruned")
    assert all(torch.equal(one[name], two[name]) for name in one)
    manifest = json.loads((tmp_path / "run/pruned/lors.json").read_text())
    assert set(manifest["calibration"]["tokens_per_linear"].values()) == {7 * 32}


@pytest.mark.parametrize("target", ["layer", "dense"])
def test_two_processes_tune_like_one(lors: Lors, write_config: WriteConfig, tmp_path: Path, target: str) -> None:
    """Also in steps of one window, in which one of them has nothing to do; they go on where one was interrupted."""
    tuning = {"steps": 3, "learning_rate": 1e-3, "batch_size": 3 if target == "dense" else 1, "target": target}
    asked = {"prune__update": "least_squares", "prune__tune_blocks": tuning}
    config = write_config(prune__calibration__samples=7, **asked)
    lors("prune", config, f"output_dir={tmp_path}/one")
    with pytest.MonkeyPatch.context() as patch:
        stop_after(1, patch)
        lors("prune", config, status=130)
    run = torchrun(config)
    assert run.returncode == 0, run.stderr
    assert "going on at block 2 of 2" in run.stderr
    one, two = (load_file(tmp_path / name / "pruned/model.safetensors") for name in ("one", "run"))
    for name in one:
        assert torch.equal(one[name] != 0, two[name] != 0)
        # Adam's first steps are as long for a gradient that is nearly nothing, whose sign rounding may decide
        assert ((one[name] - two[name]).abs() > 1e-4).float().mean() < 2e-3


def test_several_processes_say_a_wrong_request_once(write_config: WriteConfig) -> None:
    run = torchrun(write_config(prune__calibration__samples=1))
    assert run.returncode != 0
    assert run.stderr.count("prune.calibration.samples") == 1
    assert 'Traceback (most recent call last):\n  File "<frozen runpy>' in run.stderr  # of torchrun itself


def test_overrides_and_skips(lors: Lors, write_config: WriteConfig, tmp_path: Path) -> None:
    overrides = [
        {"match": "*.down_proj", "sparsity": 0.25},
        {"match": "model.layers.0.*", "skip": True},
        {"match": "model.layers.0.mlp.up_proj", "sparsity": "1:4"},
    ]
    shown = lors("prune", write_config(prune__overrides=overrides)).stderr
    assert "| block |" in shown
    sparsities = {name: 1 - float(mask.float().mean()) for name, mask in masks(tmp_path / "run/pruned").items()}
    for name, sparsity in sparsities.items():
        expected = 0.0 if "layers.0" in name else 0.25 if "down" in name else 0.5
        assert sparsity == pytest.approx(0.75 if name.endswith("0.mlp.up_proj") else expected, abs=1e-9), name
    modules = json.loads((tmp_path / "run/pruned/lors.json").read_text())["modules"]
    assert modules["model.layers.0.self_attn.q_proj"]["asked"] is None
    assert modules["model.layers.1.mlp.down_proj"]["asked"] == "0.25"


def test_an_external_mask_from_a_file_or_a_model(lors: Lors, write_config: WriteConfig, tmp_path: Path) -> None:
    lors("prune", write_config())
    wanted = masks(tmp_path / "run/pruned")
    file = tmp_path / "masks.safetensors"
    save_file({f"{name}.weight": mask for name, mask in wanted.items()}, file)
    plain = {"prune__method": "from_mask", "prune__calibration": ...}
    for name, source in (("a", file), ("b", tmp_path / "run/pruned")):
        out = f"output_dir={tmp_path}/{name}"
        lors("prune", write_config(**plain, prune__sparsity=..., prune__mask=str(source)), out)
        got = masks(tmp_path / name / "pruned")
        assert all(torch.equal(got[key], wanted[key]) for key in wanted)
    lors("prune", write_config(**plain, prune__mask=str(file)), f"output_dir={tmp_path}/c")
    refused = lors(
        "prune",
        write_config(**plain, prune__sparsity="1:4", prune__mask=str(file)),
        f"output_dir={tmp_path}/d",
        status=1,
    )
    assert "does not hold 1:4" in refused.stderr


@pytest.mark.parametrize("how", ["gone", "empty", "cut", "flipped", "zero"])
@pytest.mark.parametrize(
    "what", ["model.safetensors", "work/states-1", "work/targets-1", "work/progress.json", "work/request.json"]
)
def test_damage_to_what_an_interrupted_run_left(
    lors: Lors, write_config: WriteConfig, tmp_path: Path, what: str, how: str
) -> None:
    """It is named, what was made from it is made again, and the result has the bytes of a run without damage."""
    config = write_config(prune__profile="owl", prune__sparsity=0.5, prune__tune_blocks={"steps": 1, "target": "dense"})
    lors("prune", config, f"output_dir={tmp_path}/whole")
    with pytest.MonkeyPatch.context() as patch:
        stop_after(3, patch)
        lors("prune", config, status=130)
    assert "goes on with what" in lors("prune", config, "--dry-run").stdout
    path = tmp_path / "run/.pruned.partial" / what
    content_of = bytearray(path.read_bytes())
    path.unlink()
    if how != "gone":
        middle = len(content_of) // 2
        if how == "flipped":  # of the weights in one of the first block, as the last one is written again
            places = load_places(content_of) if what == "model.safetensors" else middle
            content_of[places] ^= 4
        if how == "zero":
            content_of = bytearray(len(content_of))
        path.write_bytes(content_of[: {"empty": 0, "cut": middle}.get(how, len(content_of))])
    said = lors("prune", config).stderr
    assert path.name in said
    assert "again" in said
    assert content(tmp_path / "run/pruned") == content(tmp_path / "whole/pruned")


def load_places(file: bytearray) -> int:
    """A byte of the first block's weights in a safetensors file."""
    length = 8 + int.from_bytes(file[:8], "little")
    header = json.loads(file[8:length])
    return length + int(header["model.layers.0.mlp.up_proj.weight"]["data_offsets"][0])


def test_repair_keeps_the_pattern_and_changes_the_mask(lors: Lors, write_config: WriteConfig, tmp_path: Path) -> None:
    changed = 0
    for method in ("magnitude", "wanda", "sparsegpt"):
        config = write_config(prune__method=method)
        lors("prune", config, f"output_dir={tmp_path}/{method}")
        lors("prune", config, "prune.repair=dsnot", f"output_dir={tmp_path}/{method}-repaired")
        before, after = masks(tmp_path / method / "pruned"), masks(tmp_path / f"{method}-repaired/pruned")
        for name, mask in after.items():
            assert (mask.view(len(mask), -1, 4).sum(-1) == 2).all(), name
            changed += int((mask != before[name]).sum())
    assert changed
