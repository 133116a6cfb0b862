"""A signal ends the work, also where Python drops the exception that it raises."""

import gc
import os
import signal
import weakref

import pytest

from lors_cli import console, interrupts


class Cycle:
    """Something that only the collector of cycles frees."""

    def __init__(self) -> None:
        self.itself = self


def lose(number: int) -> list[object]:
    """Send a signal while the garbage collector runs a callback, which drops the exception."""
    called: list[object] = []

    def callback(reference: object) -> None:
        called.append(reference)
        os.kill(os.getpid(), number)

    cycle = Cycle()
    kept = weakref.ref(cycle, callback)
    del cycle
    gc.collect()
    assert called == [kept]
    return called


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_python_drops_ends_the_next_step(number: int) -> None:
    before = signal.getsignal(number)
    with interrupts.heeded(), console.progress("test: step", 2) as advance:
        advance()
        lose(number)
        with pytest.raises(KeyboardInterrupt):
            advance()
    assert signal.getsignal(number) is before
    with interrupts.heeded():
        interrupts.check()  # another command does not hear of it


def test_a_signal_raises_at_once_where_nothing_drops_it() -> None:
    with interrupts.heeded(), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)


def test_an_ignored_interrupt_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts.heeded():
            os.kill(os.getpid(), signal.SIGINT)
            interrupts.check()
    finally:
        signal.signal(signal.SIGINT, before)
