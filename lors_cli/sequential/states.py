"""The hidden states that enter a block, for every calibration window, and their copy on disk that a killed run reads.

The states live on the compute device, in host memory, or only in the file, which is then memory-mapped. The files of
two blocks alternate, so the one that the last finished block left is whole while the next is being written. Several
processes share the files: each holds its own windows. What is put is digested, for a run that goes on from the file.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lors_cli.artifacts import publish
from lors_cli.errors import LorsError

PLACEMENTS = ("device", "host", "disk")


class States:
    """States of the `windows` (numbers within all windows), each (1, length, hidden).

    `name` begins the names of the files. Those that are not `durable` are for the block at hand: no later run goes on
    from them, so they are on the disk only where they are kept there.
    """

    def __init__(
        self,
        directory: Path,
        windows: Sequence[int],
        shape: tuple[int, int],
        dtype: torch.dtype,
        device: torch.device,
        name: str = "states",
        *,
        durable: bool = True,
    ) -> None:
        self.windows = windows
        self.durable = durable
        self._name = name
        self._directory, self._shape, self._dtype, self._device = directory, (1, *shape), dtype, device
        self._bytes = shape[0] * shape[1] * dtype.itemsize
        self._held: dict[int, Tensor] = {}
        self._placement = "disk"
        self._block = 0
        self._digests: dict[str, str] = {}

    def open(self, block: int, placement: str) -> None:
        """Take the states that enter `block` from its file; those of block 0 are still to be put."""
        self._block, self._placement = block - 1, placement
        self._held.clear()
        if block:
            self._block = block
            if placement != "disk":
                self._held = {window: self._from_file(window) for window in self.windows}

    def __getitem__(self, window: int) -> Tensor:
        """The states of `window` on the compute device, a copy that a block may change in place."""
        held = self._held.get(window)
        return self._from_file(window).to(self._device) if held is None else held.to(self._device, copy=True)

    def put(self, window: int, states: Tensor) -> None:
        """Keep the states of `window` for the next block.

        Raises:
            LorsError: they have another shape or dtype than announced.

        """
        if states.shape != self._shape or states.dtype != self._dtype:
            raise LorsError(
                f"a block's states are {tuple(states.shape)} {states.dtype}, not {self._shape} {self._dtype}: this"
                " architecture is not supported"
            )
        if self._placement != "disk":
            self._held[window] = states if self._placement == "device" else states.cpu()
            if not self.durable:
                return
        content = states.cpu().contiguous().view(torch.uint8).numpy()
        if self.durable:
            self._digests[str(window)] = hashlib.sha256(content.data).hexdigest()
        path = self._path(self._block + 1)
        with open(path, "r+b", opener=lambda name, flags: os.open(name, flags | os.O_CREAT, 0o644)) as file:
            file.seek(window * self._bytes)
            file.write(content.data)

    def turn(self) -> dict[str, str]:
        """All were put: bring them to the disk; they are now the states that enter the next block. Their digests."""
        self._block += 1
        if self.durable:
            publish.flush(self._path(self._block))
        return dict(self._digests)

    def damage(self, block: int, digests: Mapping[str, str]) -> str | None:
        """Why the states that enter `block` must not be used; None if their `digests` are as `turn` gave them."""
        path, size = self._path(block), self._bytes * len(digests)
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != size:
            return f"{path} has {path.stat().st_size} bytes instead of {size}"
        self._block = block
        for window in self.windows:
            if hashlib.sha256(self._mapped(window).data).hexdigest() != digests[str(window)]:
                return f"{path} does not have the bytes that were written for window {window}"
        return None

    def remove(self) -> None:
        """Delete the files."""
        for block in (0, 1):
            self._path(block).unlink(missing_ok=True)

    def _path(self, block: int) -> Path:
        return self._directory / f"{self._name}-{block % 2}"

    def _from_file(self, window: int) -> Tensor:
        states = torch.from_numpy(self._mapped(window)).view(self._dtype).view(self._shape)
        return states.clone() if self._placement == "host" else states

    def _mapped(self, window: int) -> Any:
        # window by window, so that the pages are given back with the tensor
        path = self._path(self._block)
        try:
            return np.memmap(path, np.uint8, "c", window * self._bytes, (self._bytes,))
        except (OSError, ValueError) as error:
            raise LorsError(f"{path} cannot be read: {error}; the same command looks at it again") from None
