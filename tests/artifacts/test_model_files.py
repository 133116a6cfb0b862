"""Which files are a model's: the same that transformers loads."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lors_cli.artifacts import model_files
from lors_cli.artifacts.links import FilesError
from lors_cli.artifacts.model_files import INDEX, SINGLE, weight_files


def index(path: Path, *names: str) -> None:
    (path / INDEX).write_text(json.dumps({"weight_map": {str(number): name for number, name in enumerate(names)}}))


def test_the_single_file_counts_before_the_index_as_for_transformers(
    make_model: Callable[..., Path], tmp_path: Path
) -> None:
    path = make_model(tmp_path / "model", shard="20KB")
    parts = weight_files(path)
    assert len(parts) > 1
    shutil.copyfile(make_model(tmp_path / "other", seed=1) / SINGLE, path / SINGLE)
    assert weight_files(path) == [path / SINGLE]
    assert model_files.others(path) == [part.name for part in parts]
    loaded = AutoModelForCausalLM.from_pretrained(path).get_input_embeddings().weight
    assert torch.equal(loaded, load_file(path / SINGLE)["model.embed_tokens.weight"])


def test_variants_and_pickles_are_not_the_models(make_model: Callable[..., Path], tmp_path: Path) -> None:
    path = make_model(tmp_path / "model")
    for name in (
        "model.fp16.safetensors",
        "model-00001-of-00002.safetensors",
        "pytorch_model.bin",
        "original.SAFETENSORS",
    ):
        (path / name).write_bytes(b"")
    assert weight_files(path) == [path / SINGLE]
    assert model_files.others(path) == ["model-00001-of-00002.safetensors", "model.fp16.safetensors"]


@pytest.mark.parametrize(
    ("names", "got", "remedy"),
    [
        ((), "has no *.safetensors file", "never loaded"),
        (("weights.safetensors",), "has weights.safetensors, but neither", "rename it to model.safetensors"),
        (("model.SAFETENSORS",), "has model.SAFETENSORS, but neither", "rename it"),
        (("model.fp16.safetensors",), "has model.fp16.safetensors, but neither", "rename it"),
        (("consolidated.safetensors",), "has consolidated.safetensors", "in Hugging Face's form"),
        (("model-1.safetensors", "model-2.safetensors"), "has model-1.safetensors, but neither", f"fetch {INDEX}"),
        (("model.safetensors", "adapter_config.json"), "holds a model and an adapter", "of their own"),
    ],
)
def test_what_transformers_would_not_load_is_refused(
    tmp_path: Path, names: tuple[str, ...], got: str, remedy: str
) -> None:
    (tmp_path / "config.json").write_text("{}")
    for name in names:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(FilesError) as caught:
        weight_files(tmp_path)
    assert got in caught.value.got
    assert remedy in caught.value.remedy


def test_the_remedy_for_another_name(make_model: Callable[..., Path], tmp_path: Path) -> None:
    path = make_model(tmp_path / "model")
    (path / SINGLE).rename(path / "weights.safetensors")
    with pytest.raises(OSError, match=SINGLE):
        AutoModelForCausalLM.from_pretrained(path)
    with pytest.raises(FilesError):
        weight_files(path)
    (path / "weights.safetensors").rename(path / SINGLE)
    assert weight_files(path) == [path / SINGLE]


def test_the_remedy_for_a_variant_in_several_files(make_model: Callable[..., Path], tmp_path: Path) -> None:
    path = make_model(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(path)
    (path / SINGLE).unlink()
    model.save_pretrained(path, variant="bf16", max_shard_size="30KB")
    with pytest.raises(FilesError) as caught:
        weight_files(path)
    called = f"AutoModelForCausalLM.from_pretrained('{path}', variant='bf16').save_pretrained('NEW_DIRECTORY')"
    assert called in caught.value.remedy
    AutoModelForCausalLM.from_pretrained(path, variant="bf16").save_pretrained(tmp_path / "new")
    assert weight_files(tmp_path / "new") == [tmp_path / "new" / SINGLE]


def test_weights_that_the_config_names(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"transformers_weights": "other.safetensors"}')
    save_file({"a": torch.zeros(1)}, tmp_path / SINGLE)
    with pytest.raises(FilesError, match="delete transformers_weights"):
        weight_files(tmp_path)


@pytest.mark.parametrize("name", ["sub/a.safetensors", "../a.safetensors", "a.bin"])
def test_an_index_that_names_something_else(tmp_path: Path, name: str) -> None:
    index(tmp_path, name)
    with pytest.raises(FilesError, match="beside the index"):
        weight_files(tmp_path)


def test_the_hubs_weights_are_those_that_the_index_names(tmp_path: Path) -> None:
    assert model_files.names_of_weights(tmp_path) == [SINGLE]
    index(tmp_path, "b.safetensors", "a.safetensors", "b.safetensors")
    assert model_files.names_of_weights(tmp_path) == [SINGLE, "a.safetensors", "b.safetensors"]
