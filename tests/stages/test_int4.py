"""From a quantised sparse model to a merged one: `train.base: int4`, quantisation-aware and not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import Result

from lors_cli.artifacts import quantized_files
from lors_cli.artifacts.quantized_files import open_quantized
from lors_cli.artifacts.tensors import TensorFiles
from lors_cli.quantization.grid import Grid
from lors_cli.training import checkpoint
from tests import quantized
from tests.training.outcome import adapter, checkpoints, same, unbroken

Lors = Callable[..., Result]
WriteConfig = Callable[..., Path]

AWARE = {"train__quantization_aware": True}
RUNS: list[dict[str, Any]] = [
    {},
    AWARE,
    {"train__method": "sqft"},
    {"train__method": "sqft", **AWARE},
    {"train__method": "lora", "merge__apply_mask": True},
]


def facts(tmp_path: Path, stage: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((tmp_path / "run" / stage / "lors.json").read_text())
    return content


@pytest.mark.parametrize("changes", RUNS, ids=["lors", "lors-qa", "sqft", "sqft-qa", "lora"])
def test_the_merged_model_has_its_scales_and_zeros_and_with_qa_the_trained_numbers(
    lors: Lors, on_codes: WriteConfig, tmp_path: Path, coded: Path, changes: dict[str, Any]
) -> None:
    config = on_codes(eval__models=["tuned", "merged"], **changes)
    for stage in ("train", "merge", "eval"):
        said = lors(stage, config).stderr
    before, after = open_quantized(coded), open_quantized(tmp_path / "run/merged")
    assert after.grid == before.grid
    moved = 0
    for linear in before.linears:
        old, new = before.quantized(linear), after.quantized(linear)
        assert torch.equal(old.scale, new.scale)
        assert old.zero_point is not None
        assert new.zero_point is not None
        assert torch.equal(old.zero_point, new.zero_point)
        assert not (new.mask() & ~old.mask()).any()
        moved += int((old.codes != new.codes).sum())
    merged = facts(tmp_path, "merged")
    assert (merged["codes_moved"], merged["returned_zeros"], merged["pattern"]) == (moved, 0, "2:4")
    assert moved
    results = json.loads((tmp_path / "run/eval/results.json").read_text())["models"]
    tuned, result = (results[name]["perplexity"]["value"] for name in ("tuned", "merged"))
    if "train__quantization_aware" in changes:
        assert merged["requantized"] == "trained"
        assert tuned == result  # to the last bit
    else:
        assert merged["requantized"] == "rounding"
        assert 0 < merged["rounding_error"] < 2
        assert tuned != result
    assert "error" not in said


def test_quantisation_aware_training_in_bfloat16_merges_to_the_same_codes(
    lors: Lors, on_codes: WriteConfig, tmp_path: Path
) -> None:
    config = on_codes(dtype="bfloat16", eval__models=["tuned", "merged"], **AWARE)
    for stage in ("train", "merge", "eval"):
        lors(stage, config)
    results = json.loads((tmp_path / "run/eval/results.json").read_text())["models"]
    assert results["tuned"]["perplexity"]["value"] == results["merged"]["perplexity"]["value"]


def test_lors_on_codes_trains_to_the_same_bits_as_on_their_numbers(
    lors: Lors, on_codes: WriteConfig, tmp_path: Path
) -> None:
    config = on_codes()
    lors("train", config)
    first = adapter(tmp_path)
    lors("train", config, "--force", "train.base=dense")
    assert same(adapter(tmp_path), first)


def test_a_training_on_codes_goes_on_where_it_stopped(
    lors: Lors, on_codes: WriteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = on_codes(train__max_steps=6, train__save_steps=2, train__elastic_ranks=[4, 2], **AWARE)
    wanted = unbroken(lors, tmp_path, config)
    save = checkpoint.Checkpoints.save

    def stop(self: Any, optimizer: Any, scheduler: Any, state: Any, own: Any) -> None:
        save(self, optimizer, scheduler, state, own)
        if state.global_step == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Checkpoints, "save", stop)
        lors("train", config, status=130)
    assert max(checkpoints(tmp_path)) == 4
    assert "resuming from checkpoint-4" in lors("train", config).stderr
    assert same(adapter(tmp_path), wanted)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train__base": "dense", **AWARE}, ["train.quantization_aware", "base: int4"]),
        ({"train__method": "lora", **AWARE}, ["train.quantization_aware", "lora", "choose a method that has it"]),
        ({"train__method": "spp"}, ["train.base", "int4 is for lors, sqft, lora"]),
        ({"train__formulation": "listing"}, ["train.base", "LoRSListing"]),
        ({"train__merge_rounding": "stochastic", **AWARE}, ["merge_rounding: nearest"]),
        (
            {"train__method": "sqft", "train__adapter_checkpointing": True},
            ["train.adapter_checkpointing", "again anyway"],
        ),
    ],
)
def test_what_does_not_go_together_is_refused_before_the_work(
    lors: Lors, on_codes: WriteConfig, tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    said = lors("train", on_codes(**changes), "--dry-run", status=2).stderr
    for word in words:
        assert word in said
    assert not (tmp_path / "run").exists()


def test_a_model_of_floats_or_of_more_bits_is_refused(
    lors: Lors, on_codes: WriteConfig, tmp_path: Path, pruned: Path
) -> None:
    eight = quantized.write(pruned, tmp_path / "eight", Grid(8, 16))
    for path, words in ((pruned, ["whose weights are floats", "`lors quantize`"]), (eight, ["with 8 bits"])):
        said = lors("train", on_codes(train__input=str(path)), "--dry-run", status=2).stderr
        for word in ["train.base", "base: dense", *words]:
            assert word in said
        lors("train", on_codes(train__input=str(path), train__base="dense"), "--dry-run")  # the remedy


def test_an_adapter_does_not_go_into_a_model_with_other_scales(
    lors: Lors, on_codes: WriteConfig, tmp_path: Path, pruned: Path, coded: Path
) -> None:
    lors("train", on_codes(**AWARE))
    other = quantized.write(pruned, tmp_path / "other", Grid(4, 8, symmetric=False))
    for path in (other, pruned):
        config = on_codes(merge__input=str(path), merge__adapter=str(tmp_path / "run/adapter"), train=...)
        said = lors("merge", config, status=2).stderr
        for word in ("merge.adapter", "made on another model", str(coded)):
            assert word in said


@pytest.mark.parametrize("edit", ["group_size", "code", "scale"])
def test_an_edited_directory_is_refused(
    lors: Lors, on_codes: WriteConfig, tmp_path: Path, pruned: Path, edit: str
) -> None:
    path = quantized.write(pruned, tmp_path / "edited")
    if edit == "group_size":
        config = json.loads((path / "config.json").read_text())
        config[quantized_files.KEY]["config_groups"]["group_0"]["weights"]["group_size"] = 32
        (path / "config.json").write_text(json.dumps(config))
    else:
        tensors = load_file(path / "model.safetensors")
        name = next(name for name in tensors if name.endswith("weight_packed" if edit == "code" else "weight_scale"))
        tensors[name] = tensors[name][:, :1].contiguous() if edit == "code" else -tensors[name]
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    result = lors("train", on_codes(train__input=str(path)), status=1 if edit == "scale" else 2)
    assert "edited or damaged" in result.stderr or "weight_packed" in result.stderr


def test_linears_that_stay_floats_are_trained_as_such_and_refused_on_a_grid(
    lors: Lors, on_codes: WriteConfig, tmp_path: Path, pruned: Path
) -> None:
    rounding = {"method": "rtn", "group_size": 16, "targets": ["q_proj", "down_proj"]}
    config = on_codes(model=str(pruned), prune=..., train__input=..., quantize=rounding, eval=...)
    lors("quantize", config)
    asked: list[str] = []
    for options, kept in (([], "q_proj, down_proj"), (["train.target_modules=[up_proj, q_proj]"], "q_proj")):
        asked = [*options, "train.quantization_aware=true"]
        said = " ".join(lors("train", config, *asked, status=2).stderr.split())
        assert "linears that are quantised" in said
        assert f"write train.target_modules: [{kept}], or set quantization_aware: false" in said
    assert "up_proj" in lors("train", config, *asked, "--dry-run", status=2).stderr  # where the config names them
    lors("train", config, "train.target_modules=[q_proj, down_proj]", "train.quantization_aware=true")
    lors("train", config, "--force")
    lors("merge", config)
    before, after = (TensorFiles(tmp_path / "run" / name) for name in ("quantized", "merged"))
    assert before.layout == after.layout
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(before.tensor(name), after.tensor(name))
    assert not (after.tensor(name)[before.tensor(name) == 0]).any()
