"""A safetensors file whose sparse weights are packed, from which the original can be made again, byte for byte.

For each 2-D floating tensor the smallest form is stored: the tensor itself, or ``NAME.values`` and
``NAME.positions`` in a layout of `lors_cli.sparsity.packed` (``starts`` follow from the positions). The same is done
with the codes of a quantised weight, in the form of `lors_cli.quantization.without_zeros`; a file with such has the
second version of this form. The metadata holds the version, the layouts, the grid of the codes, and the original file's
header, size and SHA-256.
"""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lors_cli.artifacts import digest, tensors
from lors_cli.artifacts.file_writer import FileWriter, layout_of, read_header
from lors_cli.errors import LorsError, request_error
from lors_cli.kernels import packed as kernel
from lors_cli.quantization import without_zeros
from lors_cli.quantization.grid import Grid
from lors_cli.quantization.stored import PACKED, SCALE, SHAPE, ZERO_POINT, from_tensors, pack, unpack
from lors_cli.quantization.without_zeros import Kept
from lors_cli.sparsity import packed
from lors_cli.sparsity.packed import Stored

VERSION = "1"
OF_CODES = "2"
VALUES, POSITIONS = ".values", ".positions"
AGAIN = "copy it again, or pack the model again"
OTHER = f"it unpacks to another file than the one that was packed; {AGAIN}"


def pack_file(source: Path, target: Path, layout: str | None = None, grid: Grid | None = None) -> dict[str, int]:
    """Pack the tensors of the file `source`, one in memory at a time.

    Args:
        source: a safetensors file.
        target: the packed one.
        grid: of the quantised weights in it.
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
    codes = False
    for name in checkpoint.layout:  # sizes first, because the header stands before the tensors
        try:
            stored = _packed(checkpoint, name, layout, grid)
        except ValueError as error:
            got, remedy = f"{name}: {error}", "leave it out: each weight gets the layout that fits"
            raise request_error("--layout", f"weights that fit {layout}", got, remedy, file=source) from None
        if stored.layout != "dense":
            layouts[name] = stored.layout
            codes = codes or not stored.values.is_floating_point()
        content.update({key: tensor.to("meta") for key, tensor in _parts(name, stored).items()})
    metadata = {
        "lors_packed": OF_CODES if codes else VERSION,
        "layouts": json.dumps(layouts),
        **({"grid": json.dumps(asdict(grid))} if grid and codes else {}),
        "header": base64.b64encode(read_header(source)).decode(),
        "size": str(source.stat().st_size),
        "sha256": digest.of_file(source),
    }
    writer = FileWriter(target, content, metadata=metadata)
    for name in checkpoint.layout:
        for key, tensor in _parts(name, _packed(checkpoint, name, layout, grid)).items():
            writer.write(key, tensor)
    counts = list(layouts.values())
    return {"dense": len(checkpoint.layout) - len(counts), **{kind: counts.count(kind) for kind in packed.LAYOUTS}}


def _packed(checkpoint: tensors.TensorFiles, name: str, layout: str | None, grid: Grid | None) -> Stored:
    """The smallest form of a tensor; errors as in `_pack`."""
    tensor, linear = checkpoint.tensor(name), name.removesuffix(f".{PACKED}")
    parts = {} if grid is None or linear == name else _beside(checkpoint, linear)
    if grid is None or not parts:
        return _pack(tensor, layout)
    try:
        one = from_tensors({PACKED: tensor, **parts}, grid)
    except ValueError:  # which is for those to say who read weights
        return Stored(tensor)
    kept = without_zeros.pack(one, layout)
    if kept is None or not torch.equal(_codes(kept, parts, grid), tensor):
        return Stored(tensor)  # as where what fills up the last word of a row is not all zeros
    return Stored(kept.values, kept.positions, None if kept.layout == "2:4" else kept.positions)


def _beside(checkpoint: tensors.TensorFiles, linear: str) -> dict[str, Tensor]:
    """What else the file has of a quantised weight; nothing where it is not all there."""
    names = {part: f"{linear}.{part}" for part in (SCALE, ZERO_POINT, SHAPE) if f"{linear}.{part}" in checkpoint.layout}
    return {part: checkpoint.tensor(name) for part, name in names.items()} if {SCALE, SHAPE} <= names.keys() else {}


def _codes(kept: Kept, parts: dict[str, Tensor], grid: Grid) -> Tensor:
    """The tensor of codes that was packed, by what is stored beside it."""
    rows, columns = parts[SHAPE].tolist()
    zero_point = None if grid.symmetric else unpack(parts[ZERO_POINT].T, grid.bits, rows).T
    return pack(without_zeros.codes_of(kept, (rows, columns), grid, zero_point), grid.bits)


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
    grid: Grid | None = None

    @classmethod
    def open(cls, path: Path, key: str) -> "PackedFile":
        """Read the metadata; `key` is what names the file in a command.

        Raises:
            RequestError: it is damaged, of another version, or not packed by lors.

        """
        expected, remedy = (
            f"a file packed by lors (version {VERSION} or {OF_CODES})",
            "pack the model again, or copy it again",
        )
        try:
            with tensors.open_shard(path) as file:
                metadata: dict[str, Any] = file.metadata() or {}
            version = metadata.get("lors_packed")
            if version not in (VERSION, OF_CODES):
                got = f"version {version}" if version else "another safetensors file"
                raise request_error(key, expected, got, "use the version of lors that packed it", file=path)
            header = base64.b64decode(metadata["header"], validate=True)
            json.loads(header[8:])
            grid = Grid(**json.loads(metadata["grid"])) if version == OF_CODES else None
            return cls(path, json.loads(metadata["layouts"]), header, int(metadata["size"]), metadata["sha256"], grid)
        except (LorsError, KeyError, ValueError, TypeError) as error:
            if getattr(error, "exit_status", 0) == 2:
                raise
            raise request_error(key, expected, f"a damaged one: {error}", remedy, file=path) from None

    def unpack(self, target: Path) -> None:
        """Make the original file again, one tensor in memory at a time.

        Raises:
            LorsError: the result is not what was packed: this file is damaged; or the write failed.

        """
        with self._noticing_damage():
            layout = {
                name: torch.empty(shape, dtype=dtype, device="meta") for name, (shape, dtype) in self.original.items()
            }
            writer = FileWriter.like(target, self.header, self.size, layout)
            for name in self.names():
                writer.write(name, self.tensor(name))
        if digest.of_file(target) != self.sha256:
            raise LorsError(f"{self.path} is damaged: {OTHER}")

    def prove(self) -> None:
        """Check that the original could be made again, byte for byte, one tensor in memory at a time.

        Raises:
            LorsError: it could not: this file is damaged.

        """
        found = hashlib.sha256(self.header)
        with self._noticing_damage():
            for name in self.names():
                found.update(self.tensor(name).reshape(-1).view(torch.uint8).numpy().data)
        if found.hexdigest() != self.sha256:
            raise LorsError(f"{self.path} is damaged: {OTHER}")

    @cached_property
    def original(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """The shape and the dtype of each tensor of the original, in the order in which they stand in it."""
        with self._noticing_damage():
            return layout_of(self.header)

    def names(self) -> list[str]:
        """The tensors of the original, in the order in which they stand in it.

        Raises:
            LorsError: this file has others than it should: it is damaged.

        """
        expected = {
            key
            for name in self.original
            for key in ((name + VALUES, name + POSITIONS) if name in self.layouts else (name,))
        }
        if odd := sorted(expected ^ self._tensors.layout.keys()):
            raise LorsError(f"{self.path} is damaged: {odd[0]} is missing, or should not be there; {AGAIN}")
        return list(self.original)

    def tensor(self, name: str) -> Tensor:
        """The tensor `name` as the original has it; errors as in `stored`."""
        if self.grid is None or name not in self.layouts or not name.endswith(f".{PACKED}"):
            stored, (shape, _) = self.stored(name), self.original[name]
            return stored.values if stored.positions is None else kernel.unpack(stored, (shape[0], shape[1]))
        with self._noticing_damage():
            kept = Kept(self.layouts[name], self._tensors.tensor(name + VALUES), self._tensors.tensor(name + POSITIONS))
            return _codes(kept, _beside(self._tensors, name.removesuffix(f".{PACKED}")), self.grid)

    def stored(self, name: str) -> Stored:
        """The tensor `name` of the original as it is stored here.

        Raises:
            LorsError: this file is damaged.

        """
        with self._noticing_damage():
            shape, dtype = self.original[name]
            if name not in self.layouts:
                stored = Stored(self._tensors.tensor(name))
                found = stored.values.shape
            else:
                values, positions = self._tensors.tensor(name + VALUES), self._tensors.tensor(name + POSITIONS)
                found = torch.Size(shape)
                rows, columns = shape
                stored = packed.opened(values, positions, self.layouts[name], (rows, columns))
            if stored.values.dtype != dtype or found != shape:
                raise ValueError(f"{name} is {stored.values.dtype} {tuple(found)} instead of {dtype} {shape}")
            return stored

    @cached_property
    def _tensors(self) -> tensors.TensorFiles:
        return tensors.TensorFiles(self.path)

    @contextmanager
    def _noticing_damage(self) -> Iterator[None]:
        try:
            yield
        except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            if isinstance(error, LorsError):
                raise
            raise LorsError(f"{self.path} is damaged: {error}; {AGAIN}") from None
