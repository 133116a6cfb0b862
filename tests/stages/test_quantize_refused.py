"""What ``lors quantize`` refuses before any work, and that each remedy works."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import Result

import lors_cli
from lors_cli.artifacts.quantized_files import KEY, grid_in, open_quantized, section
from lors_cli.errors import LorsError
from lors_cli.quantization.grid import Grid
from lors_cli.tools.pack import pack
from tests import quantized

Lors = Callable[..., Result]
WriteConfig = Callable[..., Path]
RTN: dict[str, Any] = {"method": "rtn", "group_size": 16}


@pytest.fixture
def config(write_config: WriteConfig, pruned: Path) -> Path:
    """A config that rounds the pruned pico model to nearest."""
    return write_config(model=str(pruned), prune=..., train=..., merge=..., eval=..., quantize=RTN)


@pytest.mark.parametrize(
    ("option", "key", "remedy"),
    [
        ("quantize.group_size=48", "quantize.group_size", "write group_size: 32"),
        ("quantize.group_size=128", "quantize.group_size", "write group_size: 32"),
        ("quantize.bits=2", "quantize.bits", ""),
        ("quantize.bits=16", "quantize.bits", ""),
        ("quantize.method=awq", "quantize.method", "gptq"),
        ("quantize.method=gptq", "quantize.calibration", "add calibration"),
        ("quantize.act_order=true", "quantize.act_order", "choose a method that has it: gptq"),
        ("quantize.targets=[lm_head]", "quantize.targets", ""),
        ("quantize.symmetric=1", "quantize.symmetric", ""),
    ],
)
def test_requests_that_cannot_be(lors: Lors, config: Path, tmp_path: Path, option: str, key: str, remedy: str) -> None:
    said = lors("quantize", config, option, status=2).stderr
    assert key in said
    assert remedy in said
    assert not (tmp_path / "run").exists()


def test_the_group_size_of_the_remedy_works(lors: Lors, config: Path) -> None:
    lors("quantize", config, "quantize.group_size=32")


def test_a_model_that_is_quantised_already(lors: Lors, config: Path, pruned: Path, tmp_path: Path) -> None:
    lors("quantize", config)
    made, other = tmp_path / "run/quantized", f"output_dir={tmp_path}/other"
    said = lors("quantize", config, f"quantize.input={made}", other, status=2).stderr
    assert "not quantised yet" in said
    assert f"name {pruned}, of which it was made" in said
    lors("quantize", config, f"quantize.input={pruned}", other)
    again = {"method": "magnitude", "sparsity": 0.5, "input": str(made)}
    assert "not quantised yet" in lors("prune", config, f"prune={json.dumps(again)}", other, status=2).stderr


def test_other_forms_of_quantisation_are_named(lors: Lors, config: Path, pruned: Path, tmp_path: Path) -> None:
    other = quantized.write(pruned, tmp_path / "other")
    said = json.loads((other / "config.json").read_text())
    said[KEY] = {"quant_method": "gptq", "bits": 4}
    (other / "config.json").write_text(json.dumps(said))
    refused = lors("quantize", config, f"quantize.input={other}", status=2).stderr
    assert "quantization_config" in refused
    assert "(gptq)" in refused
    assert "use the model before quantisation" in refused
    assert "should have" in lors("inspect", other, status=2).stderr


GOOD = section(Grid(4, 16), ["lm_head"])
EDITS: list[tuple[str, Any]] = [
    ("format", "marlin-24"),
    ("quant_method", "awq"),
    ("kv_cache_scheme", {"num_bits": 8}),
    ("sparsity_config", {"format": "sparse-24-bitmask"}),
    ("transform_config", {"config_groups": {"a": 1}}),
    ("config_groups", {}),
    ("config_groups", {"a": GOOD["config_groups"]["group_0"], "b": GOOD["config_groups"]["group_0"]}),
    ("something_new", 1),
]
IN_GROUP: list[tuple[str, Any]] = [("targets", ["re:.*"]), ("input_activations", {"num_bits": 8}), ("weights", None)]
IN_WEIGHTS: list[tuple[str, Any]] = [
    ("type", "float"),
    ("type", None),
    ("strategy", "channel"),
    ("num_bits", "4"),
    ("num_bits", 16),
    ("group_size", None),
    ("symmetric", 1),
    ("actorder", "group"),
    ("dynamic", True),
    ("block_structure", [1, 2]),
    ("scale_dtype", "torch.float8_e4m3fn"),
]


def test_what_config_json_may_say() -> None:
    assert grid_in(GOOD) == Grid(4, 16)
    extra = {
        **GOOD,
        "version": "0.20.0",
        "kv_cache_scheme": None,
        "sparsity_config": {},
        "global_compression_ratio": 1.5,
    }
    assert grid_in(extra) == Grid(4, 16)
    for places, edits in (((), EDITS), (("group_0",), IN_GROUP), (("group_0", "weights"), IN_WEIGHTS)):
        for key, value in edits:
            edited = json.loads(json.dumps(GOOD))
            target = edited if not places else edited["config_groups"]
            for place in places:
                target = target[place]
            target[key] = value
            with pytest.raises(ValueError, match=r"."):
                grid_in(edited)


def lost(tensors: dict[str, Any], name: str) -> None:
    del tensors[name]


def cut(tensors: dict[str, Any], name: str) -> None:
    tensors[name] = tensors[name][:1].clone()


@pytest.mark.parametrize("part", ["weight_packed", "weight_scale", "weight_shape", "weight_zero_point"])
@pytest.mark.parametrize("edit", [lost, cut])
def test_edited_files(pruned: Path, tmp_path: Path, lors: Lors, part: str, edit: Callable[..., None]) -> None:
    model = quantized.write(pruned, tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    edit(tensors, f"model.layers.1.mlp.up_proj.{part}")
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LorsError, match=r"was edited or damaged: it has .*up_proj"):
        open_quantized(model)
    assert "was edited or damaged" in lors("inspect", model, status=1).stderr


@pytest.mark.parametrize(("key", "value"), [("symmetric", True), ("num_bits", 8), ("group_size", 8)])
def test_another_grid_in_config_json(pruned: Path, tmp_path: Path, key: str, value: Any) -> None:
    model = quantized.write(pruned, tmp_path / "model")
    pack(model, tmp_path / "packed")
    for path in (model, tmp_path / "packed"):
        said = json.loads((path / "config.json").read_text())
        said[KEY]["config_groups"]["group_0"]["weights"][key] = value
        (path / "config.json").write_text(json.dumps(said))
        with pytest.raises(LorsError, match="was edited or damaged: it has"):
            open_quantized(path)
        with pytest.raises(ValueError, match="was edited or damaged"):
            lors_cli.load(path, packed=True)


def test_scales_that_are_none(pruned: Path, tmp_path: Path, lors: Lors) -> None:
    model = quantized.write(pruned, tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight_scale"][3, 1] = torch.nan
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    assert "weight_scale of positive, finite numbers" in lors("inspect", model, status=1).stderr


def test_an_edited_directory_is_not_evaluated(lors: Lors, config: Path, tmp_path: Path) -> None:
    lors("quantize", config)
    said = json.loads((tmp_path / "run/quantized/config.json").read_text())
    said[KEY]["config_groups"]["group_0"]["weights"]["num_bits"] = 8
    (tmp_path / "run/quantized/config.json").write_text(json.dumps(said))
    assert "was edited or damaged" in lors("inspect", tmp_path / "run/quantized", status=1).stderr
    shutil.copytree(tmp_path / "run/quantized", tmp_path / "copy", ignore=shutil.ignore_patterns("lors.json"))
    text = {"perplexity": {"dataset": "python-topics", "sequence_length": 32, "samples": 2}}
    section = {**text, "models": [str(tmp_path / "copy")]}
    lors("eval", config, f"eval={json.dumps(section)}", status=2)
