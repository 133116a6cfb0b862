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
    tensors have in the files, where these differ. One that is `going_on` keeps the files that an earlier one has left.

    Raises:
        LorsError: a write failed (a full disk, say).

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
            writer.digests = {}
            self._file.update(dict.fromkeys(names, writer))
        if split.is_sharded:
            sizes = {"total_parameters": sum(t.numel() for t in layout.values()), **split.metadata}
            index = {"metadata": sizes, "weight_map": split.tensor_to_filename}
            (directory / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")

    def write(self, name: str, tensor: Tensor) -> None:
        """Put `tensor` in its place; shape and dtype are as announced."""
        self._file[self._written[name]].write(self._written[name], tensor)

    @property
    def _files(self) -> set[FileWriter]:
        return set(self._file.values())

    @property
    def lost(self) -> str | None:
        """Why a file to go on with was not there."""
        return next((writer.lost for writer in self._files if writer.lost), None)

    def flush(self, prefix: str) -> dict[str, str]:
        """Bring the tensors whose names start with `prefix` to the disk itself; the digests of those written so far."""
        names = [written for name, written in self._written.items() if name.startswith(prefix)]
        for writer in {self._file[name] for name in names}:
            writer.flush()
        digests = self.digests
        return {name: digests[name] for name in names if name in digests}

    @property
    def digests(self) -> dict[str, str]:
        """Of all that was written, by written names."""
        return {name: one for writer in self._files for name, one in (writer.digests or {}).items()}

    def damage(self, digests: Mapping[str, str]) -> str | None:
        """Which of the tensors with these `digests`, by written names, does not stand in its file as it was written."""
        for writer in self._files:
            own = {name: one for name, one in digests.items() if self._file.get(name) is writer}
            if reason := writer.damage(own):
                return reason
        return None
