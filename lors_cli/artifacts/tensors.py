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

from lors_cli.artifacts import files
from lors_cli.errors import LorsError

PACKED_SUFFIX = ".packed.safetensors"  # only `lors unpack` reads such files
INDEX = "model.safetensors.index.json"
# Files that hold weights or describe their split; everything else of a model directory is copied as it is.
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".index.json")


# The names of dtypes in a safetensors header.
DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def shards(directory: Path) -> list[Path]:
    """The safetensors files of `directory`, each checked to be whole.

    Raises:
        LorsError: there is none, one that the index names is missing, or one is truncated or damaged.

    """
    names = {path.name for path in directory.glob("*.safetensors")}
    index = directory / INDEX
    if index.is_file():
        try:
            content = json.loads(index.read_text(), object_pairs_hook=_each_name_once)
            names = {str(Path(name)) for name in content["weight_map"].values()}
            if any(Path(name).name != name for name in names):
                raise ValueError("it names files in other directories")
        except (ValueError, KeyError, AttributeError, TypeError) as error:
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


def _each_name_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it names {next(name for name in names if names.count(name) > 1)} twice")
    return entries


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
    checkpoint = TensorFiles(directory)
    for name in checkpoint.layout:
        yield name, checkpoint.tensor(name)


class TensorFiles:
    """The tensors of a directory's safetensors files, or of one such file, each read when it is asked for.

    `layout` maps each name to its shape and dtype, known from the files' headers.

    Raises:
        LorsError: a file is missing or damaged, or a tensor stands in two of them.

    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.layout: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
        self._file: dict[str, Path] = {}
        for file in [path] if path.is_file() else shards(path):
            with open_shard(file) as shard:
                for name in shard.keys():  # noqa: SIM118 - safe_open is not a mapping
                    if name in self.layout:
                        raise LorsError(f"{path}: the tensor {name} is in both {self._file[name].name} and {file.name}")
                    part = shard.get_slice(name)
                    if part.get_dtype() not in DTYPES:
                        raise LorsError(
                            f"{file}: the tensor {name} has the dtype {part.get_dtype()}, which lors cannot read"
                        )
                    self.layout[name] = tuple(part.get_shape()), DTYPES[part.get_dtype()]
                    self._file[name] = file

    def tensor(self, name: str) -> Tensor:
        """The tensor `name`, memory-mapped: its pages are given back once it is dropped, because no other shares it."""
        with open_shard(self._file[name]) as shard:
            tensor: Tensor = shard.get_tensor(name)
        return tensor


def write(tensors: dict[str, Tensor], path: Path) -> None:
    """Write one safetensors file in the form that transformers reads.

    Raises:
        LorsError: the write failed (a full disk, say).

    """
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    except (safetensors.SafetensorError, OSError) as error:
        raise files.write_failed(path, error) from None


def copy_companions(source: Path, target: Path) -> None:
    """Copy what is neither weights nor a description of another model: tokenizer, templates, licence, configs."""
    for path in sorted(source.iterdir()):
        own = path.name.endswith(WEIGHT_SUFFIXES) or path.name.startswith((".", "README")) or path.name == "lors.json"
        if path.is_file() and not own and not (target / path.name).exists():
            shutil.copyfile(path, target / path.name)


def dtype_name(dtype: torch.dtype) -> str:
    """``torch.bfloat16`` as "bfloat16"."""
    return str(dtype).removeprefix("torch.")
