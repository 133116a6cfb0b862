"""A packed file made smaller by zstandard, from which it can be made again, byte for byte.

The bits of floats are turned by one, so that a byte holds the exponent and another the mantissa with the sign, and the
bytes of the same place in their numbers are compressed together: exponents to about a third, mantissas not at all. What
zstandard does not make smaller is stored as it is. The file is a safetensors file of bytes, ``NAME.0`` for the lowest
byte of each number of NAME; its metadata hold the header, the size and the SHA-256 of the packed file.
"""

import base64
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import torch
from torch import Tensor

from lors_cli.artifacts import digest, tensors
from lors_cli.artifacts.file_writer import FileWriter, layout_of, read_header
from lors_cli.errors import LorsError, request_error

SUFFIX = ".compressed.safetensors"
VERSION = "1"
LEVEL = 1  # higher levels take longer, and find nothing in exponents that the first does not
AGAIN = "copy it again, or pack the model again"


def compress(source: Path, target: Path) -> None:
    """Write the safetensors file `source` compressed, one tensor in memory at a time.

    Raises:
        LorsError: a file cannot be read or written.

    """
    codec, checkpoint = _codec(), tensors.TensorFiles(source)
    sizes: dict[str, int] = {}
    with tempfile.TemporaryFile(dir=target.parent) as scratch:  # sizes stand before the bytes
        for name in checkpoint.layout:
            for place, plane in enumerate(_planes(checkpoint.tensor(name))):
                smaller = codec.compress(plane, asbytes=True)
                sizes[f"{name}.{place}"] = scratch.write(smaller if len(smaller) < len(plane) else plane)
        metadata = {
            "lors_compressed": VERSION,
            "header": base64.b64encode(read_header(source)).decode(),
            "size": str(source.stat().st_size),
            "sha256": digest.of_file(source),
        }
        content = {key: torch.empty(size, dtype=torch.uint8, device="meta") for key, size in sizes.items()}
        writer = FileWriter(target, content, metadata=metadata)
        scratch.seek(0)
        for key, size in sizes.items():
            writer.write(key, torch.from_numpy(np.fromfile(scratch, np.uint8, size)))


@dataclass
class CompressedFile:
    """A compressed file that was opened; its form is checked, its numbers are not."""

    path: Path
    header: bytes
    size: int
    sha256: str

    @classmethod
    def open(cls, path: Path, key: str) -> "CompressedFile":
        """Read the metadata; `key` is what names the file in a command.

        Raises:
            RequestError: it is damaged, of another version, or not one that lors compressed.

        """
        expected = f"a file compressed by lors (version {VERSION})"
        try:
            with tensors.open_shard(path) as file:
                metadata = file.metadata() or {}
            if metadata.get("lors_compressed") == VERSION:
                header = base64.b64decode(metadata["header"], validate=True)
                size = int(metadata["size"])
                if size != len(header) + sum(
                    math.prod(shape) * kind.itemsize for shape, kind in layout_of(header).values()
                ):
                    raise ValueError("its header does not agree with its size")
                return cls(path, header, size, metadata["sha256"])
        except (LorsError, LookupError, ValueError, TypeError, AttributeError) as error:
            raise request_error(key, expected, f"a damaged one: {error}", AGAIN, file=path) from None
        got = f"version {metadata.get('lors_compressed', 'unknown')}"
        raise request_error(key, expected, got, "use the version of lors that packed it", file=path)

    def restore(self, target: Path) -> None:
        """Make the file again that was compressed, one tensor in memory at a time.

        Raises:
            LorsError: the result is another one: this file is damaged; or the write failed.

        """
        codec, layout = _codec(), layout_of(self.header)
        planned = {name: torch.empty(shape, dtype=kind, device="meta") for name, (shape, kind) in layout.items()}
        with self._noticing_damage():
            stored = tensors.TensorFiles(self.path)
        writer = FileWriter.like(target, self.header, self.size, planned)
        for name, like in planned.items():
            with self._noticing_damage():
                count = like.itemsize if like.is_floating_point() else 1
                size = like.nbytes // count
                planes = [_plane(codec, stored.tensor(f"{name}.{place}"), size) for place in range(count)]
                tensor = _joined(planes, like)
            writer.write(name, tensor)
        if digest.of_file(target) != self.sha256:
            raise LorsError(f"{self.path} is damaged: it gives another file than the one that was compressed; {AGAIN}")

    @contextmanager
    def _noticing_damage(self) -> Iterator[None]:
        try:
            yield
        except (LookupError, TypeError, ValueError, RuntimeError, AttributeError, OSError, MemoryError) as error:
            if isinstance(error, LorsError):
                raise
            raise LorsError(f"{self.path} is damaged: {error}; {AGAIN}") from None


def is_compressed(directory: Path) -> bool:
    """Whether `lors pack --compress` made the model in `directory`."""
    return any(directory.glob(f"*{SUFFIX}"))


def _codec() -> pyarrow.Codec:
    return pyarrow.Codec("zstd", compression_level=LEVEL)


def _words(size: int) -> np.dtype[Any]:
    return np.dtype(f"u{size}")


def _planes(tensor: Tensor) -> list[bytes]:
    """The bytes of a tensor: of floats the lowest ones of all numbers first, once the sign is the lowest bit."""
    content = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    if not tensor.is_floating_point():
        return [content.tobytes()]
    size = tensor.itemsize
    words = content.view(_words(size))
    turned = ((words << 1) | (words >> (8 * size - 1))).view(np.uint8).reshape(-1, size)
    return [turned[:, place].tobytes() for place in range(size)]


def _plane(codec: pyarrow.Codec, stored: Tensor, size: int) -> np.ndarray[Any, Any]:
    """The `size` bytes of a plane."""
    content = stored.numpy()
    if len(content) != size:
        content = np.frombuffer(codec.decompress(content.tobytes(), decompressed_size=size, asbytes=True), np.uint8)
    if len(content) != size:
        raise ValueError(f"{len(content)} bytes instead of {size}")
    return content


def _joined(planes: list[np.ndarray[Any, Any]], planned: Tensor) -> Tensor:
    """The tensor, as large as `planned`, that has these planes."""
    if not planned.is_floating_point():
        content = planes[0].copy()
    else:
        size = planned.itemsize
        words = np.ascontiguousarray(np.stack(planes, axis=1)).reshape(-1).view(_words(size))
        content = ((words >> 1) | (words << (8 * size - 1))).view(np.uint8)
    return tensors.of_bytes(content, planned.dtype, planned.shape)
