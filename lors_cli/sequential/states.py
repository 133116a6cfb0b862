"""The hidden states that enter a block, for every calibration window, and their copy on disk that a killed run reads.

The states live on the compute device, in host memory, or only in the file, which is then memory-mapped. The files of
two blocks alternate, so the one that the last finished block left is whole while the next is being written. Several
processes share the files: each holds its own windows.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lors_cli.artifacts import publish
from lors_cli.errors import LorsError

PLACEMENTS = ("device", "host", "disk")


class States:
    """States of the `windows` (numbers within all windows), each (1, length, hidden)."""

    def __init__(
        self, directory: Path, windows: Sequence[int], shape: tuple[int, int], dtype: torch.dtype, device: torch.device
    ) -> None:
        self.windows = windows
        self._directory, self._shape, self._dtype, self._device = directory, (1, *shape), dtype, device
        self._bytes = shape[0] * shape[1] * dtype.itemsize
        self._held: dict[int, Tensor] = {}
        self._placement = "disk"
        self._block = 0

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
        content = states.cpu().contiguous().view(torch.uint8).numpy()
        descriptor = os.open(self._path(self._block + 1), os.O_RDWR | os.O_CREAT, 0o644)
        with os.fdopen(descriptor, "r+b") as file:
            file.seek(window * self._bytes)
            file.write(content.data)

    def turn(self) -> None:
        """All were put: bring them to the disk; they are now the states that enter the next block."""
        self._block += 1
        publish.flush(self._path(self._block))

    def remove(self) -> None:
        """Delete the files."""
        for block in (0, 1):
            self._path(block).unlink(missing_ok=True)

    def _path(self, block: int) -> Path:
        return self._directory / f"states-{block % 2}"

    def _from_file(self, window: int) -> Tensor:
        # mapped window by window, so that the pages are given back with the tensor
        path = self._path(self._block)
        try:
            mapped = np.memmap(path, np.uint8, "c", window * self._bytes, (self._bytes,))
        except (OSError, ValueError) as error:
            raise LorsError(f"{path} is not as the interrupted run left it ({error}); --force starts over") from None
        states = torch.from_numpy(mapped).view(self._dtype).view(self._shape)
        return states.clone() if self._placement == "host" else states
