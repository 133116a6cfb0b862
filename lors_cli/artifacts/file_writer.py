"""One safetensors file, written tensor by tensor in any order, with the bytes that a whole save has.

Shapes and dtypes are known beforehand, so the header is written first and every tensor goes to its place. A tensor that
was written may be written again with the same values: that is how an interrupted run goes on.
"""

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lors_cli.artifacts import files, publish, tensors

CHUNK = 1 << 22


def read_header(path: Path) -> bytes:
    """The header of a safetensors file, its length included, as it stands in the file."""
    with path.open("rb") as file:
        length = file.read(8)
        return length + file.read(struct.unpack("<Q", length)[0])


def layout_of(header: bytes) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """The shape and the dtype of each tensor by a header from `read_header`, in the order in which they stand.

    Raises:
        ValueError, LookupError, TypeError, AttributeError: it is not one.

    """
    places = json.loads(header[8:])
    places.pop("__metadata__", None)
    ordered = sorted(places.items(), key=lambda item: item[1]["data_offsets"])
    return {name: (tuple(place["shape"]), tensors.DTYPES[place["dtype"]]) for name, place in ordered}


class FileWriter:
    """Writes the tensors of a `layout` (meta tensors by name) into the file `path`.

    One that is `going_on` keeps the file that an earlier one has left, unless it is `lost`.

    Attributes:
        lost: why there was no such file to go on with; None if there was, or none was looked for.
        digests: of the bytes of each tensor that was written, by name; they are made if this is not None.

    Raises:
        LorsError: a write failed (a full disk, say).

    """

    lost: str | None

    def __init__(
        self, path: Path, layout: Mapping[str, Tensor], *, metadata: dict[str, str], going_on: bool = False
    ) -> None:
        header: dict[str, Any] = {"__metadata__": metadata}
        end = 0
        # the library's order: the wider dtypes first, which aligns every tensor, then by name
        for name, tensor in sorted(layout.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])):
            size = tensor.numel() * tensor.dtype.itemsize
            header[name] = {
                "dtype": tensors.DTYPE_NAMES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [end, end + size],
            }
            end += size
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        self._use(path, struct.pack("<Q", len(text)) + text, layout)
        size = len(self._header) + end
        if going_on:
            self.lost = self._missing(size)
        if not going_on or self.lost:
            self._create(size)

    @classmethod
    def like(cls, path: Path, header: bytes, size: int, layout: Mapping[str, Tensor]) -> "FileWriter":
        """One that gives the file a `header` from `read_header` and the `size` in bytes that its file had."""
        writer = cls.__new__(cls)
        writer._use(path, header, layout)
        writer._create(size)
        return writer

    def _use(self, path: Path, header: bytes, layout: Mapping[str, Tensor]) -> None:
        self.path, self._header, self._layout = path, header, layout
        self.lost = None
        self.digests: dict[str, str] | None = None
        places = json.loads(header[8:])
        self._start = {name: len(header) + places[name]["data_offsets"][0] for name in layout}

    def _missing(self, size: int) -> str | None:
        """Why `path` is not the file of an earlier writer of the same layout, `size` bytes long."""
        if not self.path.is_file():
            return f"{self.path} is missing"
        if (found := self.path.stat().st_size) != size:
            return f"{self.path} has {found} bytes instead of {size}"
        with self.path.open("rb") as file:
            return None if file.read(len(self._header)) == self._header else f"the header of {self.path} is another"

    def damage(self, digests: Mapping[str, str]) -> str | None:
        """Which of the tensors with these `digests` does not stand in the file as it was written."""
        with self.path.open("rb") as file:
            for name, wanted in digests.items():
                file.seek(self._start[name])
                left, found = self._layout[name].nbytes, hashlib.sha256()
                while left and (chunk := file.read(min(left, CHUNK))):
                    found.update(chunk)
                    left -= len(chunk)
                if found.hexdigest() != wanted:
                    return f"{self.path} does not have the bytes that were written for {name}"
        return None

    def _create(self, size: int) -> None:
        try:
            with self.path.open("w+b") as file:
                file.write(self._header)
                file.truncate(size)
            publish.flush(self.path.parent)
        except OSError as error:
            raise files.write_failed(self.path, error) from None

    def write(self, name: str, tensor: Tensor) -> None:
        """Put `tensor` in its place; shape and dtype are as announced."""
        planned = self._layout[name]
        if tensor.shape != planned.shape or tensor.dtype != planned.dtype:
            raise ValueError(f"{name}: {tensor.shape} {tensor.dtype} instead of {planned.shape} {planned.dtype}")
        content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        if self.digests is not None:
            self.digests[name] = hashlib.sha256(content.data).hexdigest()
        try:
            with self.path.open("r+b") as file:
                file.seek(self._start[name])
                file.write(content.data)
        except OSError as error:
            raise files.write_failed(self.path, error) from None

    def flush(self) -> None:
        """Bring the file to the disk itself."""
        try:
            publish.flush(self.path)
        except OSError as error:
            raise files.write_failed(self.path, error) from None
