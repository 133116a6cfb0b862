"""One directory with all that a command reads and writes, and the commands that are run in it, each by a fork."""

import atexit
import gc
import os
import select
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.faults import shim
from tests.faults.shim import UNCOUNTED, Event, Fault, Kind

PATIENCE = 120.0  # seconds for a command that takes less than one


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit status (negative: the signal), what it printed, and the events that it named."""

    status: int
    output: str
    events: list[Event]
    modules: tuple[str, ...] = ()


class Box:
    """The directory ``box`` below `place`, at the same path for all runs, since manifests record paths.

    ``run`` and the rest are as the caller prepares them; ``cache`` and ``tmp`` are what the environment names.
    """

    def __init__(self, place: Path) -> None:
        self.root, self._kept, self._outside = place / "box", place / "kept", place / "outside"
        self.root.mkdir(parents=True)
        self._kept.mkdir()
        self._outside.mkdir()
        for name in ("cache", "tmp"):
            (self.root / name).mkdir()

    def keep(self, name: str) -> None:
        """Remember what is in the box."""
        shutil.copytree(self.root, self.kept(name), symlinks=True)

    def kept(self, name: str) -> Path:
        """Where it is remembered."""
        return self._kept / name

    def restore(self, name: str) -> None:
        """Bring the box back to what was remembered."""
        shutil.rmtree(self.root)
        shutil.copytree(self.kept(name), self.root, symlinks=True)

    def run(self, arguments: list[str], fault: Fault = UNCOUNTED, *, modules: bool = False) -> Ended:
        """Run the command `arguments` in the box, as ``lors`` would, while `fault` happens."""
        output, events, loaded = (self._outside / name for name in ("output", "events", "modules"))
        process = os.fork()
        if process == 0:
            status = 70
            try:
                status = self._child(arguments, fault, output, events, loaded if modules else None)
            finally:
                os._exit(status)
        status = _wait(process)
        lines = [line.split(" ", 2) for line in events.read_text(errors="replace").splitlines()]
        named = [Event(Kind(int(kind)), call, path) for kind, call, path in lines]
        names = tuple(loaded.read_text().split("\n")) if modules and loaded.exists() else ()
        return Ended(status, output.read_text(errors="replace"), named, names)

    def rehearse(self, arguments: list[str], after: str) -> None:
        """Do a dry run of a command in this very process: what it imports and keeps in memory, each fork then has.

        Commands without ``--dry-run`` refuse it, which does no harm.
        """
        self.restore(after)
        kept = [(n, os.dup(n)) for n in (1, 2)]
        with (self._outside / "output").open("wb") as printed:
            for number, _ in kept:
                os.dup2(printed.fileno(), number)
            try:
                self._call([*arguments, "--dry-run"])
            finally:
                for number, copy in kept:
                    os.dup2(copy, number)
                    os.close(copy)

    def _child(self, arguments: list[str], fault: Fault, output: Path, events: Path, modules: Path | None) -> int:
        with output.open("wb") as printed, events.open("wb") as log:
            os.dup2(printed.fileno(), 1)
            os.dup2(printed.fileno(), 2)
            sys.stdout, sys.stderr = (os.fdopen(os.dup(n), "w", errors="backslashreplace") for n in (1, 2))
            shim.arm(fault, self.root, log.fileno())
            status = self._call(arguments)
            try:
                atexit._run_exitfuncs()
            except BaseException:
                traceback.print_exc()
            shim.arm(UNCOUNTED, Path("/nowhere"), -1)
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            if modules:
                modules.write_text("\n".join(sorted(sys.modules)))
            return status

    def _call(self, arguments: list[str]) -> int:
        from lors_cli.cli import main

        os.chdir(self.root)
        os.environ.update(XDG_CACHE_HOME=str(self.root / "cache"), TMPDIR=str(self.root / "tmp"))
        tempfile.tempdir = None
        sys.argv = ["lors", *arguments]
        try:
            main()
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
            return 1
        return 0


def _wait(process: int) -> int:
    """Wait for a child, which is killed where it takes much too long.

    Raises:
        TimeoutError: it did.

    """
    descriptor = os.pidfd_open(process)
    try:
        if not select.select([descriptor], [], [], PATIENCE)[0]:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            raise TimeoutError(f"a command took longer than {PATIENCE:.0f} s")
    finally:
        os.close(descriptor)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


@contextmanager
def frozen() -> Iterator[None]:
    """Keep the garbage collector away from what was loaded, so that children share its pages."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
