"""The tensors of a model directory that `lors pack` made, read as they are stored or unpacked one by one."""

from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from lors_cli.artifacts import compressed_file, digest, model_files, tensors
from lors_cli.artifacts.links import FilesError
from lors_cli.artifacts.model_files import SINGLE
from lors_cli.artifacts.packed_file import PackedFile
from lors_cli.sparsity.packed import LAYOUTS, Stored


class PackedFiles(tensors.TensorFiles):
    """The tensors of a packed model by the names and in the forms that they have in the original.

    Opening it proves the files, once in a process unless they change.

    Raises:
        LorsError: a file is missing, damaged or of another version.

    """

    def __init__(self, path: Path) -> None:
        self.path, self.shards = path, _shards(path)
        self.layout = {}
        self._packed: dict[str, PackedFile] = {}
        for file in self.shards:
            opened = PackedFile.open(file, "model")
            _proved(file, digest.signature(file))
            for name, entry in opened.original.items():
                if name in self.layout:
                    reason = f"has the tensor {name} in both {self._packed[name].path.name} and {file.name}"
                    raise FilesError(path, reason, "keep the files of one save only")
                self.layout[name], self._packed[name] = entry, opened

    def tensor(self, name: str) -> Tensor:
        """The tensor `name`, unpacked."""
        return self._packed[name].tensor(name)

    def stored(self, name: str) -> Stored:
        """The tensor `name` as it is stored."""
        return self._packed[name].stored(name)


def is_packed(directory: Path) -> bool:
    """Whether `lors pack` made the model in `directory`."""
    return compressed_file.is_compressed(directory) or any(directory.glob(f"*{tensors.PACKED_SUFFIX}"))


def open_tensors(directory: Path) -> tensors.TensorFiles:
    """The tensors of a model directory, packed or not; errors as of the two classes."""
    return PackedFiles(directory) if is_packed(directory) else tensors.TensorFiles(directory)


def facts(directory: Path) -> dict[str, Any]:
    """How many tensors are stored in each layout, and the bytes of the files that they were packed from."""
    opened = [PackedFile.open(path, "model") for path in _shards(directory)]
    kinds = [file.layouts.get(name, "dense") for file in opened for name in file.original]
    counts = {kind: kinds.count(kind) for kind in ("dense", *LAYOUTS)}
    return {"tensors": counts, "unpacked_bytes": sum(file.size for file in opened)}


def others(directory: Path) -> list[str]:
    """The names of packed files that are not part of the model; errors as in `PackedFiles`."""
    return sorted(
        {path.name for path in directory.glob(f"*{tensors.PACKED_SUFFIX}")} - {p.name for p in _shards(directory)}
    )


def _shards(directory: Path) -> list[Path]:
    """The packed files of the model in `directory`.

    Raises:
        FilesError: one is missing, or there are weights beside them that are not packed.

    """
    if compressed_file.is_compressed(directory):
        remedy = f"make the model again with `lors unpack {directory} NEW`, and name NEW"
        raise FilesError(directory, "is compressed (lors pack --compress), to be kept and copied", remedy)
    if plain := sorted(p.name for p in directory.glob("*.safetensors") if not p.name.endswith(tensors.PACKED_SUFFIX)):
        remedy = "move what is not packed to a directory of its own"
        raise FilesError(directory, f"holds a packed model and {plain[0]}", remedy)
    if (directory / SINGLE).with_suffix(tensors.PACKED_SUFFIX).is_file():
        names = [SINGLE]
    else:
        names = [name for name in model_files.names_of_weights(directory) if name != SINGLE] or [SINGLE]
    paths = [directory / name.replace(".safetensors", tensors.PACKED_SUFFIX) for name in names]
    if lacking := next((path.name for path in paths if not path.is_file()), None):
        raise FilesError(directory, f"lacks {lacking}", "copy that file again, or pack the model again")
    return paths


@lru_cache(maxsize=4096)
def _proved(path: Path, _: digest.Signature) -> None:
    PackedFile.open(path, "model").prove()
