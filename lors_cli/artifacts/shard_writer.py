"""A model directory's safetensors files, written tensor by tensor, with the bytes that a whole save has."""

import json
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor

from lors_cli.artifacts.file_writer import FileWriter
from lors_cli.artifacts.model_files import INDEX

MAX_SHARD_BYTES = 5 * 10**9


class ShardWriter:
    """Writes the tensors of `layout` (meta tensors by name, in the model's order) into `directory`.

    The split into files and the index are those of transformers' ``save_pretrained``; `written` are the names that
    tensors have in the files, where these differ. One that is `going_on` expects the files as an earlier one left them.

    Raises:
        LorsError: a write failed (a full disk, say), or a file to go on with is missing or has another size.

    """

    def __init__(
        self,
        directory: Path,
        layout: dict[str, Tensor],
        max_shard_bytes: int = MAX_SHARD_BYTES,
        *,
        written: Mapping[str, str] | None = None,
        going_on: bool = False,
    ) -> None:
        self.directory = directory
        self._file: dict[str, FileWriter] = {}
        self._written = {name: (written or {}).get(name, name) for name in layout}
        layout = {self._written[name]: tensor for name, tensor in layout.items()}
        split = split_torch_state_dict_into_shards(
            layout, filename_pattern="model{suffix}.safetensors", max_shard_size=max_shard_bytes
        )
        for file, names in split.filename_to_tensors.items():
            content = {name: layout[name] for name in names}
            writer = FileWriter(directory / file, content, metadata={"format": "pt"}, going_on=going_on)
            self._file.update(dict.fromkeys(names, writer))
        if split.is_sharded:
            sizes = {"total_parameters": sum(t.numel() for t in layout.values()), **split.metadata}
            index = {"metadata": sizes, "weight_map": split.tensor_to_filename}
            (directory / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")

    def write(self, name: str, tensor: Tensor) -> None:
        """Put `tensor` in its place; shape and dtype are as announced."""
        self._file[self._written[name]].write(self._written[name], tensor)

    def flush(self, prefix: str) -> None:
        """Bring the tensors whose names start with `prefix` to the disk itself."""
        for writer in {self._file[written] for name, written in self._written.items() if name.startswith(prefix)}:
            writer.flush()
