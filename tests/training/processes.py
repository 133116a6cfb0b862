"""Several processes of one job on this machine, as torchrun would start them, without starting Python anew."""

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from lors_cli import console, pipeline
from lors_cli.config.load import load


def start(
    count: int, config: Path, overrides: Sequence[str] = (), log: Path | None = None, stage: str = "train"
) -> list[int]:
    """Fork `count` processes that share a stage; their numbers."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return [_fork(rank, count, port, config, overrides, log, stage) for rank in range(count)]


def _fork(
    rank: int, count: int, port: int, config: Path, overrides: Sequence[str], log: Path | None, stage: str
) -> int:
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), LOCAL_WORLD_SIZE=str(count))
        os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port))
        if log:
            sys.stderr = open(f"{log}.{rank}", "w", buffering=1)  # noqa: SIM115 - ends with the process
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        console.setup(-1 if rank else 0)
        pipeline.run(load(config, list(overrides)), [stage])
        status = 0
    except KeyboardInterrupt:
        status = 130
    except BaseException as error:
        console.error(error, debug=not isinstance(error, Exception))
    finally:
        os._exit(status)


def wait(children: list[int]) -> list[int]:
    """Their exit statuses; a negative one is the signal that ended it."""
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def train(count: int, config: Path, *overrides: str) -> None:
    """Train and be done."""
    children = start(count, config, overrides)
    assert wait(children) == [0] * count


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for it."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
