"""C++ that is compiled at its first use with the compiler that is there, and kept in the user's cache.

A source has C functions alone and includes nothing of PyTorch, so that building takes seconds and needs a compiler
only, and what was built serves every version of Python and PyTorch. Its threads are OpenMP's, which are PyTorch's own.
"""

import ctypes
import hashlib
import logging
import os
import platform
import subprocess
import sys
import tempfile
import time
from functools import lru_cache
from pathlib import Path

log = logging.getLogger(__name__)

SWITCH = "LORS_NATIVE"  # an environment variable: 0 makes all run in plain PyTorch
OPTIONS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-fopenmp", "-Wno-maybe-uninitialized")
COMPILE_SECONDS = 600


class UnavailableError(Exception):
    """The code cannot be built or run here; the message is the reason."""


def cache_directory() -> Path:
    """``$XDG_CACHE_HOME/lors``, or ``~/.cache/lors``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lors"


def load(name: str, source: str, instructions: tuple[str, ...]) -> ctypes.CDLL:
    """The library of a C++ `source`, which was built before or is built now.

    Args:
        name: begins the name of the file in the cache.
        source: the text.
        instructions: the sets that it uses beyond x86-64, as Linux names them in /proc/cpuinfo.

    Raises:
        UnavailableError: it is switched off, this machine lacks an instruction set, or there is no compiler that
            builds it.

    """
    if os.environ.get(SWITCH) == "0":
        raise UnavailableError(f"{SWITCH}=0")
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        raise UnavailableError(f"it is for Linux on x86-64, not for {platform.system()} on {platform.machine()}")
    if lacking := [one for one in instructions if one not in _instructions()]:
        raise UnavailableError(f"this CPU does not have {', '.join(lacking)}")
    compiler = os.environ.get("CXX") or "c++"
    flags = [*OPTIONS, *(f"-m{one.replace('_', '')}" for one in instructions)]
    stem = f"{name}-{_digest(chr(10).join([compiler, *flags, source]).encode())}"
    directory = cache_directory() / "native"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not (built := _kept(directory, stem)):
            with tempfile.TemporaryDirectory(dir=directory) as scratch:
                fresh = _built(compiler, flags, source, Path(scratch) / f"{name}.so")
                built = directory / f"{stem}-{_digest(fresh.read_bytes())}.so"
                os.replace(fresh, built)  # whole or not at all, whoever else builds it now
        return ctypes.CDLL(str(built))
    except OSError as error:
        log.debug("%s cannot be used: %s", directory, error)
    with tempfile.TemporaryDirectory() as scratch:  # a cache that is read-only: once for each process
        try:
            return ctypes.CDLL(str(_built(compiler, flags, source, Path(scratch) / f"{name}.so")))
        except OSError as error:
            raise UnavailableError(f"what {compiler} built cannot be loaded: {error}") from None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _kept(directory: Path, stem: str) -> Path | None:
    """What was built earlier, if its content is as its name says: loading a part of a library would end the process."""
    there = (path for path in directory.glob(f"{stem}-*.so") if path.stem == f"{stem}-{_digest(path.read_bytes())}")
    return next(there, None)


@lru_cache
def _instructions() -> frozenset[str]:
    """The instruction sets of this CPU that the system allows."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        line = next((line for line in file if line.startswith("flags")), "")
    return frozenset(line.partition(":")[2].split())


def _built(compiler: str, flags: list[str], source: str, target: Path) -> Path:
    """Compile `source` into the file `target`.

    Raises:
        UnavailableError: there is no compiler, or it fails, whose message is then in the log.

    """
    started = time.monotonic()
    command = [*compiler.split(), *flags, "-x", "c++", "-", "-o", str(target)]
    try:
        done = subprocess.run(
            command, input=source, capture_output=True, text=True, check=False, timeout=COMPILE_SECONDS
        )
    except FileNotFoundError:
        raise UnavailableError(f"there is no C++ compiler {compiler}; install one, or name one in CXX") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"the C++ compiler {compiler} does not run: {error}") from None
    if done.returncode:
        log.warning("%s:\n%s", " ".join(command), done.stderr.strip()[-2000:])
        raise UnavailableError(f"the C++ compiler {compiler} fails, as shown above")
    log.info("native: built %s in %.0f seconds", target.stem, time.monotonic() - started)
    return target
