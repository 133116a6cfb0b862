"""SIGTERM waits for the work at hand, once."""

import os
import signal
import threading

import pytest

from lors_cli.stopping import gracefully


def test_the_first_signal_waits_and_the_second_does_not(caplog: pytest.LogCaptureFixture) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with gracefully("soon") as stop:
        assert not stop.asked()
        os.kill(os.getpid(), signal.SIGTERM)
        assert (stop.heard, stop.came) == (False, True)
        assert stop.asked()
        assert stop.heard
        assert caplog.messages == ["soon"]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_another_thread_works_without_signals() -> None:
    answers: list[bool] = []

    def work() -> None:
        with gracefully("never") as stop:
            answers.append(stop.asked())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert answers == [False]
