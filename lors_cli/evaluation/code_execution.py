"""Programs that a model wrote, run against their tests: each in a process of its own, with limits.

This protects against mistakes, which models make, and not against malice: what runs is Python with the rights of the
user who runs lors. A program cannot take the memory or the time of the machine, leave processes behind, open a socket
or write outside of an empty directory that is removed afterwards, as long as it does not set out to; it can read what
its user can read. Where that is not enough, evaluate in a container without a network.

Nothing runs unless it was permitted: see `permitted`.
"""

import json
import math
import os
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path

from lors_cli.errors import LorsError, request_error
from lors_cli.evaluation.code_runner import READY

RUNNER = Path(__file__).with_name("code_runner.py")
TIMEOUT = 3.0  # seconds, as in the code of Chen et al. 2021
CLOCK = 4  # on a machine with other work, as many seconds by the clock for one of computation
START_TIMEOUT = 120.0
MEMORY_BYTES = 2**30

_permitted = False


@contextmanager
def permitted() -> Iterator[None]:
    """Allow programs to be run while this lasts."""
    global _permitted
    before, _permitted = _permitted, True
    try:
        yield
    finally:
        _permitted = before


def allowed() -> bool:
    """Whether programs may be run."""
    return _permitted


class Verdict(StrEnum):
    """What came of a program: it ran to its end, it failed, or it was ended because its time was over."""

    PASSED = "passed"
    FAILED = "failed"
    LATE = "late"


def check(program: str, *, timeout: float = TIMEOUT, memory_bytes: int = MEMORY_BYTES) -> Verdict:
    """Whether `program`, its tests included, runs to its end without an error.

    Args:
        program: Python source, which sees the standard library only.
        timeout: seconds of computation; waiting counts too, `CLOCK` times less.
        memory_bytes: of address space.

    Raises:
        RequestError: nobody permitted it.
        LorsError: no process could be started.

    """
    if not allowed():
        expected = "true, because the task runs programs that the model writes"
        raise request_error(
            "eval.allow_code_execution", expected, "false", "set it where that does no harm, such as in a container"
        )
    token = secrets.token_hex(16)
    wanted = {"program": program, "token": token, "cpu_seconds": math.ceil(timeout), "memory_bytes": memory_bytes}
    with (
        tempfile.TemporaryDirectory(prefix="lors-code-", ignore_cleanup_errors=True) as home,
        tempfile.TemporaryFile("w+") as request,
    ):
        json.dump(wanted, request)
        request.seek(0)
        reading, writing = os.pipe()
        started = time.monotonic()  # the system counts the computation from here on
        process = subprocess.Popen(
            # -S -s: no site-packages; not -I, which would ignore the seed that makes sets the same in every run
            [sys.executable, "-B", "-S", "-s", "-X", "utf8", str(RUNNER), str(writing)],
            stdin=request,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=home,
            env={"HOME": home, "TMPDIR": home, "PYTHONHASHSEED": "0"},
            pass_fds=(writing,),
            start_new_session=True,
        )
        os.close(writing)
        try:
            if _read(reading, len(READY), START_TIMEOUT) != READY:
                raise LorsError(f"no process for the programs under test could be started with {sys.executable}")
            if _read(reading, len(token), CLOCK * timeout) == token.encode():
                return Verdict.PASSED
            took = time.monotonic() - started
        finally:
            with suppress(ProcessLookupError, PermissionError):  # nothing of it is left
                os.killpg(process.pid, signal.SIGKILL)  # before `wait`, as long as the number is surely its own
            process.wait()
            os.close(reading)
    # the system ends what computes too long, and this what waits too long; a program that fails exits by itself
    killed = process.returncode in (-signal.SIGKILL, -signal.SIGXCPU)
    return Verdict.LATE if killed and took >= timeout else Verdict.FAILED


def _read(descriptor: int, size: int, seconds: float) -> bytes:
    """At most `size` bytes; fewer if the other side is closed, or if the `seconds` are over."""
    content, end = b"", time.monotonic() + seconds
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    while len(content) < size and poll.poll(max(end - time.monotonic(), 0) * 1000):
        part = os.read(descriptor, size - len(content))
        if not part:
            break
        content += part
    return content


def check_all(programs: list[str]) -> list[Verdict]:
    """The verdicts on `programs`, as many at a time as there are CPUs; equal programs are run once.

    Raises:
        RequestError, LorsError: as `check`.

    """
    different = list(dict.fromkeys(programs))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        verdicts = dict(zip(different, pool.map(check, different), strict=True))
    return [verdicts[program] for program in programs]


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """The unbiased estimate of the probability that one of `k` samples is correct (Chen et al. 2021, equation 1).

    Args:
        samples: how many were drawn, n; at least `k`.
        correct: how many of those are correct, c.
        k: how many may be tried.

    Returns:
        1 - C(n - c, k) / C(n, k).

    """
    return 1 - math.comb(samples - correct, k) / math.comb(samples, k)
