"""A safetensors file whose sparse weights are packed, from which the original can be made again, byte for byte.

For each 2-D floating tensor the smallest form is stored: the tensor itself, or ``NAME.values`` and
``NAME.positions`` in a layout of `lors_cli.sparsity.packed` (``starts`` follow from the positions). The metadata holds
the version of this form, the layouts, and the original file's header, size and SHA-256.
"""

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lors_cli.artifacts import digest, tensors
from lors_cli.artifacts.file_writer import FileWriter, read_header
from lors_cli.errors import LorsError, request_error
from lors_cli.sparsity import packed
from lors_cli.sparsity.packed import Stored

VERSION = "1"
VALUES, POSITIONS = ".values", ".positions"


def pack_file(source: Path, target: Path, layout: str | None = None) -> dict[str, int]:
    """Pack the tensors of the file `source`, one in memory at a time.

    Args:
        source: a safetensors file.
        target: the packed one.
        layout: "2:4" or "bitmask" for every weight that packing makes smaller; the smaller one if left out.

    Returns:
        how many tensors were stored in each layout.

    Raises:
        RequestError: a sparse weight does not fit the layout.
        LorsError: a file cannot be read or written.

    """
    checkpoint = tensors.TensorFiles(source)
    layouts: dict[str, str] = {}
    content: dict[str, Tensor] = {}
    for name in checkpoint.layout:  # sizes first, because the header stands before the tensors
        try:
            stored = _pack(checkpoint.tensor(name), layout)
        except ValueError as error:
            got, remedy = f"{name}: {error}", "leave it out: each weight gets the layout that fits"
            raise request_error("--layout", f"weights that fit {layout}", got, remedy, file=source) from None
        if stored.layout != "dense":
            layouts[name] = stored.layout
        content.update({key: tensor.to("meta") for key, tensor in _parts(name, stored).items()})
    metadata = {
        "lors_packed": VERSION,
        "layouts": json.dumps(layouts),
        "header": base64.b64encode(read_header(source)).decode(),
        "size": str(source.stat().st_size),
        "sha256": digest.of_file(source),
    }
    writer = FileWriter(target, content, metadata=metadata)
    for name in checkpoint.layout:
        for key, tensor in _parts(name, _pack(checkpoint.tensor(name), layout)).items():
            writer.write(key, tensor)
    counts = list(layouts.values())
    return {"dense": len(checkpoint.layout) - len(counts), **{kind: counts.count(kind) for kind in packed.LAYOUTS}}


def _pack(tensor: Tensor, layout: str | None) -> Stored:
    """The smallest form of `tensor`, of the packed ones only `layout` if there is one.

    Raises:
        ValueError: packing would make it smaller, but not in that layout.

    """
    if tensor.dim() != 2 or not tensor.is_floating_point() or tensor.itemsize == 1:
        return Stored(tensor)
    smaller = packed.packed_bytes(tensor) < tensor.numel() * tensor.itemsize
    return packed.pack(tensor, layout) if smaller else Stored(tensor)


def _parts(name: str, stored: Stored) -> dict[str, Tensor]:
    """What is stored for the tensor `name`."""
    if stored.positions is None:
        return {name: stored.values}
    return {name + VALUES: stored.values, name + POSITIONS: stored.positions}


@dataclass
class PackedFile:
    """A packed file that was opened; its form is checked, its numbers are not."""

    path: Path
    layouts: dict[str, str]
    header: bytes
    size: int
    sha256: str

    @classmethod
    def open(cls, path: Path, key: str) -> "PackedFile":
        """Read the metadata; `key` is what names the file in a command.

        Raises:
            RequestError: it is damaged, of another version, or not packed by lors.

        """
        expected, remedy = f"a file packed by lors (version {VERSION})", "pack the model again, or copy it again"
        try:
            with tensors.open_shard(path) as file:
                metadata: dict[str, Any] = file.metadata() or {}
            version = metadata.get("lors_packed")
            if version != VERSION:
                got = f"version {version}" if version else "another safetensors file"
                raise request_error(key, expected, got, "use the version of lors that packed it", file=path)
            header = base64.b64decode(metadata["header"], validate=True)
            json.loads(header[8:])
            return cls(path, json.loads(metadata["layouts"]), header, int(metadata["size"]), metadata["sha256"])
        except (LorsError, KeyError, ValueError) as error:
            if getattr(error, "exit_status", 0) == 2:
                raise
            raise request_error(key, expected, f"a damaged one: {error}", remedy, file=path) from None

    def unpack(self, target: Path) -> None:
        """Make the original file again, one tensor in memory at a time.

        Raises:
            LorsError: the result is not what was packed: this file is damaged; or the write failed.

        """
        stored, places = tensors.TensorFiles(self.path), json.loads(self.header[8:])
        places.pop("__metadata__", None)
        try:
            layout = {
                name: torch.empty(place["shape"], dtype=tensors.DTYPES[place["dtype"]], device="meta")
                for name, place in places.items()
            }
            writer = FileWriter.like(target, self.header, self.size, layout)
            for name, planned in layout.items():
                writer.write(name, self._tensor(stored, name, planned.shape))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise LorsError(f"{self.path} is damaged: {error}; copy it again") from None
        if digest.of_file(target) != self.sha256:
            raise LorsError(
                f"{self.path} is damaged: it unpacks to another file than the one that was packed; copy it again"
            )

    def _tensor(self, stored: tensors.TensorFiles, name: str, shape: torch.Size) -> Tensor:
        kind = self.layouts.get(name)
        if kind is None:
            return stored.tensor(name)
        values, positions = stored.tensor(name + VALUES), stored.tensor(name + POSITIONS)
        starts = packed.starts_of(positions, shape[1]) if kind == "bitmask" else None
        return packed.unpack(Stored(values, positions, starts), (shape[0], shape[1]))
