"""SIGTERM, the warning of a scheduler, while a training runs: the step is finished and a checkpoint saved."""

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from lors_cli import processes

log = logging.getLogger(__name__)


class Stop:
    """Whether training is to stop. All processes hear of it at the same step, also where only one got the signal."""

    def __init__(self) -> None:
        self.signalled = False  # this process was asked
        self.heard = False  # all know of it

    def signal(self, *_: Any) -> None:
        """A signal's handler; a second one stops at once."""
        if self.signalled:
            raise KeyboardInterrupt
        self.signalled = True
        log.warning("asked to stop: the step is finished and a checkpoint saved")

    def asked(self) -> bool:
        """Whether any process was asked to; to be called by all of them at the end of each step."""
        self.heard = bool(processes.add_up(torch.tensor(int(self.signalled))))
        return self.heard


@contextmanager
def gracefully() -> Iterator[Stop]:
    """Listen to SIGTERM; raises KeyboardInterrupt at the end if it came."""
    stop = Stop()
    before = signal.signal(signal.SIGTERM, stop.signal)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)
    if stop.heard or stop.signalled:  # after the last step too: what is left to do can wait
        raise KeyboardInterrupt
