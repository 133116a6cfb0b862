"""Reading a directory of safetensors files that is whole, and every way in which it may not be."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lors_cli.artifacts.model_files import INDEX
from lors_cli.artifacts.tensors import TensorFiles, read, shards
from lors_cli.errors import LorsError

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


def test_only_the_files_that_the_index_names_count(directory: Path) -> None:
    save_file({"a": torch.zeros(1)}, directory / "other.safetensors")
    assert TensorFiles(directory).layout["a"][0] == (2, 3)
    assert shards(directory) == [directory / FIRST, directory / SECOND]


def test_an_index_that_names_a_tensor_twice(directory: Path) -> None:
    text = (directory / INDEX).read_text()
    for again in (f'"a": "{FIRST}"', f'"a": "{SECOND}"'):  # even where both say the same
        (directory / INDEX).write_text(text.replace('"c":', f'{again}, "c":'))
        with pytest.raises(LorsError, match=rf"damaged {INDEX}: it names a twice"):
            TensorFiles(directory)


def test_a_tensor_in_two_shards(directory: Path) -> None:
    save_file({**PARTS[SECOND], "a": ALL["a"].clone()}, directory / SECOND)
    with pytest.raises(LorsError, match=f"the tensor a in both {FIRST} and {SECOND}"):
        TensorFiles(directory)


def test_a_missing_shard(directory: Path) -> None:
    (directory / SECOND).unlink()
    with pytest.raises(LorsError, match=rf"lacks {SECOND}, which {INDEX} names"):
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


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64, torch.float8_e8m0fnu])
def test_a_dtype_that_no_model_here_has_is_no_crash(tmp_path: Path, dtype: torch.dtype) -> None:
    save_file({"scales": torch.ones(4).to(dtype)}, tmp_path / "model.safetensors")
    with pytest.raises(LorsError, match="scales"):
        TensorFiles(tmp_path)
