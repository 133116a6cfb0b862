"""A model directory's safetensors files, written tensor by tensor in any order, with the bytes that a whole save has.

Shapes and dtypes are known beforehand, so the headers are written first and every tensor goes to its place in its
file. A tensor that was written may be written again with the same values: that is how an interrupted run goes on.
"""

import json
import struct
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor

from lors_cli.artifacts import publish, tensors
from lors_cli.errors import LorsError

MAX_SHARD_BYTES = 5 * 10**9


class ShardWriter:
    """Writes the tensors of `layout` (meta tensors by name, in the model's order) into `directory`.

    The split into files and the index are those of transformers' ``save_pretrained``. One that is `going_on` expects
    the files as an earlier one left them.

    Raises:
        LorsError: a write failed (a full disk, say), or a file to go on with is missing or has another size.

    """

    def __init__(
        self,
        directory: Path,
        layout: dict[str, Tensor],
        max_shard_bytes: int = MAX_SHARD_BYTES,
        *,
        going_on: bool = False,
    ) -> None:
        self.directory = directory
        self._layout = layout
        self._place: dict[str, tuple[Path, int]] = {}
        split = split_torch_state_dict_into_shards(
            layout, filename_pattern="model{suffix}.safetensors", max_shard_size=max_shard_bytes
        )
        for file, names in split.filename_to_tensors.items():
            self._open(directory / file, {name: layout[name] for name in names}, going_on=going_on)
        if split.is_sharded:
            sizes = {"total_parameters": sum(t.numel() for t in layout.values()), **split.metadata}
            index = {"metadata": sizes, "weight_map": split.tensor_to_filename}
            (directory / tensors.INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")

    def _open(self, path: Path, content: dict[str, Tensor], *, going_on: bool) -> None:
        """Create the file with its header, and remember where each tensor of `content` belongs."""
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        # the library's order: the wider dtypes first, which aligns every tensor, then by name
        for name, tensor in sorted(content.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])):
            size = tensor.numel() * tensor.dtype.itemsize
            header[name] = {
                "dtype": tensors.DTYPE_NAMES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [end, end + size],
            }
            self._place[name] = (path, end)
            end += size
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        start = 8 + len(text)
        for name in content:
            self._place[name] = (path, start + self._place[name][1])
        if going_on:
            if not path.is_file() or path.stat().st_size != start + end:
                raise LorsError(f"{path} is not as the interrupted run left it; --force starts over")
            return
        try:
            with path.open("w+b") as file:
                file.write(struct.pack("<Q", len(text)) + text)
                file.truncate(start + end)
            publish.flush(path.parent)
        except OSError as error:
            raise tensors.write_failed(path, error) from None

    def write(self, name: str, tensor: Tensor) -> None:
        """Put `tensor` in its place; shape and dtype are as announced."""
        planned = self._layout[name]
        if tensor.shape != planned.shape or tensor.dtype != planned.dtype:
            raise ValueError(f"{name}: {tensor.shape} {tensor.dtype} instead of {planned.shape} {planned.dtype}")
        path, offset = self._place[name]
        content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        try:
            with path.open("r+b") as file:
                file.seek(offset)
                file.write(content.data)
        except OSError as error:
            raise tensors.write_failed(path, error) from None

    def flush(self, prefix: str) -> None:
        """Bring the tensors whose names start with `prefix` to the disk itself."""
        for path in {path for name, (path, _) in self._place.items() if name.startswith(prefix)}:
            try:
                publish.flush(path)
            except OSError as error:
                raise tensors.write_failed(path, error) from None
