"""SIGTERM, the warning of a scheduler: what is being done is finished and kept before the run ends."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lors_cli import processes

if TYPE_CHECKING:
    from types import FrameType

log = logging.getLogger(__name__)


class Stop:
    """Whether the work is to stop. All processes hear of it at the same point, also where only one got the signal."""

    def __init__(self, answer: str) -> None:
        self._answer = answer
        self._signalled = self.heard = False  # this process was asked; all know of it

    def signal(self, number: int, frame: "FrameType | None") -> None:
        """Handle the signal; a second one stops at once."""
        if self._signalled:
            raise KeyboardInterrupt
        self._signalled = True
        log.warning("%s", self._answer)

    def asked(self) -> bool:
        """Whether any process was asked to; all of them must call this at the same point of their work."""
        import torch

        self.heard = bool(processes.add_up(torch.tensor(int(self._signalled))))
        return self.heard

    @property
    def came(self) -> bool:
        """Whether this process was asked to, or has heard of it."""
        return self._signalled or self.heard


@contextmanager
def gracefully(answer: str) -> Iterator[Stop]:
    """Let SIGTERM wait for the work inside, which asks the `Stop` and ends by itself; a second one stops at once.

    `answer` is logged when the signal comes. Only the main thread can take signals; in another one nothing changes.
    """
    stop = Stop(answer)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.signal(signal.SIGTERM, stop.signal)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)
