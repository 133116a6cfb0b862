"""Reading a directory of safetensors files that is whole, and every way in which it may not be."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lors_cli.artifacts.tensors import INDEX, TensorFiles, read, shards
from lors_cli.errors import LorsError, RequestError
from lors_cli.models import load

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
PARTS = {
    FIRST: {"a": torch.arange(6.0).view(2, 3), "b": torch.randn(4).bfloat16()},
    SECOND: {"c": torch.randn(3, 2), "d": torch.arange(5)},
}
ALL = {name: tensor for part in PARTS.values() for name, tensor in part.items()}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    for file, part in PARTS.items():
        save_file(part, tmp_path / file, metadata={"format": "pt"})
    weight_map = {name: file for file, part in PARTS.items() for name in part}
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return tmp_path


def test_every_tensor_is_read_by_name(directory: Path) -> None:
    files = TensorFiles(directory)
    assert files.layout == {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in ALL.items()}
    assert all(torch.equal(files.tensor(name), tensor) for name, tensor in ALL.items())
    assert {name: tensor.tolist() for name, tensor in read(directory)} == {n: t.tolist() for n, t in ALL.items()}
    with pytest.raises(KeyError):
        files.tensor("e")


def test_one_file_is_a_checkpoint_too(directory: Path) -> None:
    files = TensorFiles(directory / SECOND)
    assert list(files.layout) == ["c", "d"]
    assert torch.equal(files.tensor("c"), ALL["c"])


def test_without_an_index_all_files_count_and_with_one_only_those_it_names(directory: Path) -> None:
    save_file({"a": torch.zeros(1)}, directory / "other.safetensors")
    assert TensorFiles(directory).layout["a"][0] == (2, 3)
    assert shards(directory) == [directory / FIRST, directory / SECOND]
    (directory / INDEX).unlink()
    with pytest.raises(LorsError, match=rf"the tensor a is in both {FIRST} and other\.safetensors"):
        TensorFiles(directory)


def test_an_index_that_names_a_tensor_twice(directory: Path) -> None:
    text = (directory / INDEX).read_text()
    for again in (f'"a": "{FIRST}"', f'"a": "{SECOND}"'):  # even where both say the same
        (directory / INDEX).write_text(text.replace('"c":', f'{again}, "c":'))
        with pytest.raises(LorsError, match=rf"{INDEX} is damaged: it names a twice"):
            TensorFiles(directory)


def test_a_tensor_in_two_shards(directory: Path) -> None:
    save_file({**PARTS[SECOND], "a": ALL["a"].clone()}, directory / SECOND)
    with pytest.raises(LorsError, match=f"the tensor a is in both {FIRST} and {SECOND}"):
        TensorFiles(directory)


def test_a_missing_shard(directory: Path) -> None:
    (directory / SECOND).unlink()
    with pytest.raises(LorsError, match=rf"{SECOND} is named by {INDEX} but missing"):
        TensorFiles(directory)


@pytest.mark.parametrize("left", [0, 4, 8, 60, -1])
def test_a_truncated_shard(directory: Path, left: int) -> None:
    path = directory / SECOND
    path.write_bytes(path.read_bytes()[:left])
    size = path.stat().st_size
    with pytest.raises(LorsError, match=rf"{SECOND} is truncated or damaged \({size} bytes\)"):
        TensorFiles(directory)


def test_a_shard_that_is_something_else(directory: Path) -> None:
    for text in (b"version https://git-lfs.github.com/spec/v1\n", b"\xff" * 200, b"\x10" + b"\0" * 7 + b"{" * 100):
        (directory / FIRST).write_bytes(text)
        with pytest.raises(LorsError, match=f"{FIRST} is truncated or damaged"):
            TensorFiles(directory)


NO_NAME = '{"weight_map": {"a": 1}}'


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": []}}', "\x00", NO_NAME]
)
def test_a_damaged_index(directory: Path, text: str) -> None:
    (directory / INDEX).write_text(text)
    with pytest.raises(LorsError, match=INDEX):
        TensorFiles(directory)


def test_a_directory_without_weights(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(LorsError, match=r"has no \*\.safetensors file"):
            TensorFiles(path)


def change(path: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    (file,) = path.glob("*.safetensors")
    content = load_file(file)
    edit(content)
    save_file(content, file, metadata={"format": "pt"})


NORM = "model.layers.1.input_layernorm.weight"


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (lambda content: content.pop(NORM), rf"no tensor {NORM} among 19"),
        (lambda content: content.update({NORM: torch.ones(31)}), rf"{NORM} of shape \(31,\)"),
        (lambda content: content.update({NORM: torch.ones(1, 32)}), rf"{NORM} of shape \(1, 32\)"),
        (lambda content: content.update({NORM: torch.ones(32, dtype=torch.int8)}), rf"{NORM} .* dtype int8"),
    ],
)
def test_a_model_whose_files_hold_something_else(
    make_model: Callable[..., Path], tmp_path: Path, edit: Callable[[dict[str, Tensor]], object], match: str
) -> None:
    path = make_model(tmp_path / "model")
    change(path, edit)
    with pytest.raises(RequestError, match=match) as caught:
        load.open_weights(path, load.skeleton(path), "prune.input")
    assert caught.value.problems[0].key == "prune.input"


def test_a_tensor_more_than_the_model_has_does_no_harm(make_model: Callable[..., Path], tmp_path: Path) -> None:
    path = make_model(tmp_path / "model")
    change(path, lambda content: content.update({"rotary.inv_freq": torch.ones(4)}))
    assert "rotary.inv_freq" in load.open_weights(path, load.skeleton(path), "model").layout


def test_a_damaged_model_is_a_wrong_request(make_model: Callable[..., Path], tmp_path: Path) -> None:
    path = make_model(tmp_path / "model", shard="20KB")
    skeleton = load.skeleton(path)
    first = min(path.glob("*.safetensors"))
    whole = first.read_bytes()
    for text in (whole[:-1], None):
        first.unlink()
        if text:
            first.write_bytes(text)
        with pytest.raises(RequestError, match=first.name) as caught:
            load.open_weights(path, skeleton, "model")
        assert caught.value.problems[0].file == str(path)


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64, torch.float8_e8m0fnu])
def test_a_dtype_that_no_model_here_has_is_no_crash(tmp_path: Path, dtype: torch.dtype) -> None:
    save_file({"scales": torch.ones(4).to(dtype)}, tmp_path / "a.safetensors")
    with pytest.raises(LorsError, match="scales"):
        TensorFiles(tmp_path)
