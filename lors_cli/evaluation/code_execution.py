"""Programs that a model wrote, run against their tests: each in a process of its own, with limits, in a sandbox.

Where Linux has namespaces for everybody, `code_sandbox` encloses a program: nothing outside is there for it to read or
to change. Elsewhere the limits of `code_runner` stand alone. These protect against mistakes, which models make, and not
against malice: a program that sets out to can read and change what its user can. Which of both it is, `sandbox` finds
out by trying. Neither keeps a program from cheating in its tests, which run in one process with it.

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
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Literal

from lors_cli.artifacts import temporary
from lors_cli.errors import LorsError, first_line, request_error
from lors_cli.evaluation.code_runner import READY

RUNNER, SANDBOX = (Path(__file__).with_name(f"code_{name}.py") for name in ("runner", "sandbox"))
KILLED = b"k"  # what the sandbox says of a program that the system ended
# -S -s: no site-packages; -P: no modules from beside a script; not -I, which would ignore the seed that makes sets
# the same in every run
PYTHON = [os.path.realpath(getattr(sys, "_base_executable", sys.executable)), "-B", "-P", "-S", "-s", "-X", "utf8"]
TIMEOUT = 3.0  # seconds, as in the code of Chen et al. 2021
CLOCK = 4  # on a machine with other work, as many seconds by the clock for one of computation
START_TIMEOUT = 120.0
MEMORY_BYTES = 2**30
LONGEST = 500  # bytes of a message
DATA = ("/etc/ld.so.cache", "/usr/share/zoneinfo", "/usr/lib/locale")  # of the system, for libraries and modules
TRIAL = "import os; assert os.getpid() == 2 and not os.listdir() and not any(map(os.path.exists, {outside}))"
LOOK = """  # prints the folders of a Python's modules and those of the shared libraries that they load
import json, os, sys
own = [path for path in sys.path if os.path.isdir(path)]
for name in sorted(name.split(".")[0] for path in own for name in os.listdir(path) if name.endswith(".so")):
    if not name.startswith(("_test", "_tkinter", "xx")):
        try:
            __import__(name)
        except ImportError:
            pass
with open("/proc/self/maps") as file:
    libraries = {line.split(maxsplit=5)[5].strip() for line in file if ".so" in line}
print(json.dumps([*own, *{os.path.dirname(path) for path in libraries}]))
"""

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


@dataclass(frozen=True)
class Sandbox:
    """What encloses programs: "namespaces", or only "limits", and then why.

    `paths` are what `code_sandbox` shows and hides.
    """

    kind: Literal["namespaces", "limits"]
    reason: str = ""
    paths: tuple[str, ...] = ()


@cache
def sandbox() -> Sandbox:
    """The best sandbox that there is on this machine, found by trying."""
    if not sys.platform.startswith("linux"):
        return Sandbox("limits", "only Linux has namespaces")
    try:
        best = Sandbox("namespaces", paths=tuple(_paths()))
        if _run(TRIAL.format(outside=["/proc", "/sys", __file__]), best, TIMEOUT, MEMORY_BYTES) == Verdict.PASSED:
            return best
        reason = "a program inside could see outside"
    except (LorsError, OSError, ValueError, subprocess.CalledProcessError) as error:
        reason = first_line(error)
    return Sandbox("limits", reason)


def _paths() -> Iterator[str]:
    """What a Python needs, as `code_sandbox` wants it: itself, its modules, and folders of their libraries."""
    answer = subprocess.run(
        [*PYTHON, "-c", LOOK], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True, env={}
    )
    found = [Path(path) for path in json.loads(answer.stdout)]
    short = [Path("/", *folder.parts[2:]) for folder in found if folder.parts[:2] == ("/", "usr")]  # /lib is /usr/lib
    loaders = [path for folder in ("/lib", "/lib64") for path in Path(folder).glob("ld-*.so*")]
    shown = {Path(PYTHON[0]), RUNNER, *found, *loaders, *map(Path, DATA), *(path for path in short if path.is_dir())}
    shown = {path for path in shown if path.exists() and shown.isdisjoint(path.parents)}
    yield from (f"+{path}" for path in sorted(shown))
    yield from (f"-{path}" for folder in found for path in folder.glob("*-packages"))


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
    return _run(program, sandbox(), timeout, memory_bytes)


def _run(program: str, within: Sandbox, timeout: float, memory_bytes: int) -> Verdict:
    token = secrets.token_hex(16)
    wanted = f"{math.ceil(timeout)} {memory_bytes} {token}\n{program}"
    enclosed = within.kind == "namespaces"
    with (
        temporary.directory("code") as home,
        tempfile.TemporaryFile() as request,
    ):
        request.write(wanted.encode(errors="surrogatepass"))
        request.seek(0)
        reading, writing = os.pipe()
        command = [*PYTHON, str(RUNNER), str(writing)]
        started = time.monotonic()  # the system counts the computation from here on
        process = subprocess.Popen(
            [*PYTHON, str(SANDBOX), str(writing), *within.paths, "--", *command] if enclosed else command,
            stdin=request,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=home,
            env={"HOME": str(home), "TMPDIR": str(home), "PYTHONHASHSEED": "0"},
            pass_fds=(writing,),
            start_new_session=True,
        )
        os.close(writing)
        try:
            if (began := _read(reading, len(READY), START_TIMEOUT)) != READY:
                said = f": {(began + _read(reading, LONGEST, 1)).decode(errors='replace')}" if began else ""
                raise LorsError(f"no process for the programs under test could be started with {PYTHON[0]}{said}")
            answer = _read(reading, len(token), CLOCK * timeout)
            if answer == token.encode():
                return Verdict.PASSED
            took = time.monotonic() - started
        finally:
            with suppress(ProcessLookupError, PermissionError):  # nothing of it is left
                os.killpg(process.pid, signal.SIGKILL)  # before `wait`, as long as the number is surely its own
            process.wait()
            os.close(reading)
    # the system ends what computes too long, and this what waits too long; a program that fails exits by itself
    killed = answer in (KILLED, b"") if enclosed else process.returncode in (-signal.SIGKILL, -signal.SIGXCPU)
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
