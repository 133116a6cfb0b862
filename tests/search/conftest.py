import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lors_cli.errors import RequestError
from lors_cli.search.sweep import sweep

WriteConfig = Callable[..., Path]
KillSweep = Callable[[Path, list[str], Path, str], None]

HELD_OUT = {
    "train__eval_dataset": {"path": "python-topics", "split": "test", "limit": 1},
    "train__max_steps": 2,
    "train__init": "random",
}


def problems(make: Callable[[Path, list[str]], object], path: Path, *arguments: str) -> dict[str, str]:
    """The keys of what is wrong with a file and its arguments, and what is said of them."""
    with pytest.raises(RequestError) as caught:
        make(path, list(arguments))
    return {problem.key: str(problem) for problem in caught.value.problems}


@pytest.fixture
def config(write_config: WriteConfig) -> Path:
    return write_config(**HELD_OUT)


@pytest.fixture
def kill_sweep() -> KillSweep:
    """Run a sweep in a child process, and kill it as soon as a file of that pattern is in the directory."""

    def kill(path: Path, arguments: list[str], directory: Path, pattern: str) -> None:
        child = os.fork()
        if child == 0:
            try:
                sweep(path, arguments)
            finally:
                os._exit(0)
        deadline = time.monotonic() + 240
        while not list(directory.glob(pattern)) and time.monotonic() < deadline:
            time.sleep(0.001)
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])

    return kill
