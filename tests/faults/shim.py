"""The library that counts what a process does to files and lets something go wrong: built, loaded, armed."""

import ctypes
import enum
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).with_name("shim.c")


class Kind(enum.IntFlag):
    """Kinds of events; `shim.c` has the same."""

    OPEN_READ = 1
    OPEN_WRITE = 2
    READ = 4
    WRITE = 8
    NAME = 16
    SYNC = 32


CHANGES = Kind.OPEN_WRITE | Kind.WRITE | Kind.NAME | Kind.SYNC
READS = Kind.OPEN_READ | Kind.READ
EVERY = CHANGES | READS


class Action(enum.IntEnum):
    """What happens at the chosen event; `shim.c` has the same."""

    COUNT = 0
    SIGNAL = 1
    TORN = 2  # half of a write is done before the signal
    FAIL = 3
    FAIL_FROM_HERE = 4
    SHORT = 5


class Event(NamedTuple):
    """A call that a process made, and the path that it was about."""

    kind: Kind
    call: str
    path: str


@dataclass(frozen=True)
class Fault:
    """What goes wrong, at which event of which kinds; `value` is a signal or an errno."""

    action: Action
    kinds: Kind = CHANGES
    at: int = -1
    value: int = 0


UNCOUNTED = Fault(Action.COUNT, Kind(0))


def missing() -> str | None:
    """Why the library cannot be built here; None if it can be."""
    if sys.platform != "linux":
        return "needs Linux (LD_PRELOAD and /proc)"
    return None if _compiler() else "needs a C compiler"


def _compiler() -> str | None:
    named = str(sysconfig.get_config_var("CC") or "cc").split()[0]
    return shutil.which(named) or shutil.which("cc") or shutil.which("gcc")


def build(directory: Path) -> Path:
    """Compile the library into `directory`."""
    library = directory / "faults.so"
    compiler = _compiler()
    assert compiler
    command = [compiler, "-O1", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl"]
    subprocess.run(command, check=True)
    return library


def arm(fault: Fault, root: Path, log: int) -> None:
    """Let `fault` happen at events below `root`; the chosen event, or with COUNT each, is named in the file `log`."""
    loaded = ctypes.CDLL(None)
    loaded.faults_arm(
        str(root).encode(), int(fault.kinds), ctypes.c_long(fault.at), int(fault.action), fault.value, log
    )
