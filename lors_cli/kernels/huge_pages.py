"""Weights side by side in memory of huge pages.

With pages of 4 KB a core that streams weights loses time on the translation of addresses. Huge pages only serve memory
that is aligned to them, and most weights of a small model are smaller than one. So weights are placed one after another
in large slabs; a slab is freed with the last weight in it.
"""

import mmap
import threading
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

PAGE = 1 << 21  # bytes
SLAB = 1 << 26
LEAST = 1 << 12  # what is smaller stays where it is
LINE = 64  # what weights are aligned to

_ADVICE: Any = getattr(mmap, "MADV_HUGEPAGE", None)  # Linux has it


class _Slab:
    """Memory of at least `size` bytes from a page on; what is not written takes none."""

    def __init__(self, size: int) -> None:
        self.memory = mmap.mmap(-1, size + PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with suppress(OSError):  # a wish: a system without huge pages is slower
            self.memory.madvise(_ADVICE)
        self.start = -torch.frombuffer(self.memory, dtype=torch.uint8).data_ptr() % PAGE
        self.left = size

    def take(self, tensor: Tensor) -> Tensor:
        """A tensor like this one, with a storage of its own, which keeps the memory."""
        made = torch.frombuffer(self.memory, dtype=torch.uint8, count=tensor.nbytes, offset=self.start)
        used = -(-tensor.nbytes // LINE) * LINE
        self.start, self.left = self.start + used, self.left - used
        return made.view(tensor.dtype).view(tensor.shape)


_lock = threading.Lock()
_current: _Slab | None = None


def placed(tensor: Tensor) -> Tensor:
    """The same numbers in huge pages, contiguous, where a CPU is to read many of them; else the tensor itself."""
    global _current
    if tensor.device.type != "cpu" or tensor.nbytes < LEAST or _ADVICE is None:
        return tensor
    with _lock:
        if _current is None or _current.left < tensor.nbytes:
            _current = _Slab(max(SLAB, tensor.nbytes))
        room = _current.take(tensor)
    return room.copy_(tensor)
