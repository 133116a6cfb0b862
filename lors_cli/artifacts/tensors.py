"""Tensors of a model directory, read one at a time from its safetensors files; shards written with the same layout."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from lors_cli.errors import LorsError

INDEX = "model.safetensors.index.json"
# Files that hold weights or describe their split; everything else of a model directory is copied as it is.
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".index.json")


def shards(directory: Path) -> list[Path]:
    """The safetensors files of `directory`, each checked to be whole.

    Raises:
        LorsError: there is none, one that the index names is missing, or one is truncated or damaged.

    """
    names = {path.name for path in directory.glob("*.safetensors")}
    index = directory / INDEX
    if index.is_file():
        try:
            names = set(json.loads(index.read_text())["weight_map"].values())
        except (ValueError, KeyError, AttributeError) as error:
            raise LorsError(f"{index} is damaged: {error}; copy it again from its source") from None
    if not names:
        raise LorsError(f"{directory} has no *.safetensors file")
    paths = [directory / name for name in sorted(names)]
    for path in paths:
        if not path.is_file():
            raise LorsError(f"{path} is named by {INDEX} but missing; copy it again from its source")
        with open_shard(path):
            pass
    return paths


def open_shard(path: Path) -> Any:
    """``safetensors.safe_open`` with a clear error for a file that is truncated or not safetensors."""
    try:
        return safetensors.safe_open(path, framework="pt")
    except (safetensors.SafetensorError, OSError) as error:
        raise LorsError(
            f"{path} is truncated or damaged ({path.stat().st_size} bytes): {error}; copy it again from its source"
        ) from None


def read(directory: Path) -> Iterator[tuple[str, Tensor]]:
    """Each tensor of `directory` by name, one in memory at a time."""
    for path in shards(directory):
        with open_shard(path) as shard:
            for name in shard.keys():  # noqa: SIM118 - safe_open is no mapping
                yield name, shard.get_tensor(name)


def write(tensors: dict[str, Tensor], path: Path) -> None:
    """Write one safetensors file in the form that transformers reads.

    Raises:
        LorsError: the write failed (a full disk, say).

    """
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    except (safetensors.SafetensorError, OSError) as error:
        raise write_failed(path, error) from None


def write_failed(path: Path, error: BaseException) -> LorsError:
    """The error for a write that did not succeed, with the space that is left."""
    free = shutil.disk_usage(path.parent).free
    return LorsError(
        f"cannot write {path}: {error} ({free / 1e9:.2f} GB free there); free space or set another output_dir"
    )


def copy_companions(source: Path, target: Path) -> None:
    """Copy what is neither weights nor a description of another model: tokenizer, templates, licence, configs."""
    for path in sorted(source.iterdir()):
        own = path.name.endswith(WEIGHT_SUFFIXES) or path.name.startswith((".", "README")) or path.name == "lors.json"
        if path.is_file() and not own and not (target / path.name).exists():
            shutil.copyfile(path, target / path.name)


def dtype_name(dtype: torch.dtype) -> str:
    """``torch.bfloat16`` as "bfloat16"."""
    return str(dtype).removeprefix("torch.")
