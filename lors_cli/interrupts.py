"""Ctrl-C and SIGTERM that are not lost.

Both raise KeyboardInterrupt. Where Python runs a callback of the garbage collector or a finaliser at that moment, it
drops the exception and the run would go on; so it is also remembered, and raised again at the next point of the work.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_came = False


@contextmanager
def heeded() -> Iterator[None]:
    """Let SIGTERM, the warning of a scheduler, end the work inside as Ctrl-C does; neither of them is lost."""
    global _came
    _came = False
    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, _interrupt)}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # in the background a shell may have ignored it
        before[signal.SIGINT] = signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def check() -> None:
    """Raise KeyboardInterrupt if a signal came before, whatever became of it: for points at which work can end."""
    if _came:
        raise KeyboardInterrupt


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _came
    _came = True
    raise KeyboardInterrupt
