"""Runs a case in this process, and judges how it ended."""

import json
import os
import re
import signal
import socket
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from unittest.mock import patch

from typer.main import get_command
from typer.testing import CliRunner

from lors_cli.cli import app
from tests.fuzz.cases import Case, base

MOST_SECONDS = 5.0  # of CPU time, until a command has to have answered
PATIENCE = 20  # seconds of waiting for each of these: a machine may be busy, but a pipe never answers


MESSAGE = re.compile(r"(?m)^(error: )?\S.*\n  expected: .+\n  got: .*\n(.*\n)*?  remedy:   .+")
USAGE = re.compile(r"Usage: (.*\n)*.*(Missing|Invalid|No such|Got unexpected)")  # of the command line itself


COMMAND = get_command(app)  # which `invoke` would make again for each case


class Late(BaseException):
    """A command has not answered; not an Exception, which it might take for its own."""


def build(root: Path, model: Path) -> None:
    """The places that cases name, below `root`."""
    (root / "model").symlink_to(model)
    os.mkfifo(root / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(root / "socket"))
    (root / "dangling").symlink_to(root / "nowhere")
    (root / "loop").symlink_to(root / "loop")
    (root / "empty").touch()
    (root / "rows").write_text('{"text": "a b c"}\n')
    manifests = root / "folder/manifests"
    manifests.mkdir(parents=True)
    (manifests / "lors.json").write_text("[]")
    (root / "config.yaml").touch()
    (root / "cwd").mkdir()
    plain = Case(["run", "CONFIG", "--dry-run"], json.dumps(base(str(root))).encode())
    if found := fault(plain, root, most_seconds=60):  # also imports all that the cases need
        raise AssertionError(found)


@contextmanager
def _in_time(most_seconds: float) -> Iterator[None]:
    def late(number: int, frame: FrameType | None) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        place = "".join(traceback.format_stack(frame)[-12:])
        signal.setitimer(signal.ITIMER_REAL, 0.5)  # again, if this is lost in a finaliser
        raise Late(place)

    before = [(one, signal.signal(one, late)) for one in (signal.SIGPROF, signal.SIGALRM)]
    signal.setitimer(signal.ITIMER_PROF, most_seconds)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE * most_seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for one, handler in before:
            signal.signal(one, handler)


def fault(case: Case, root: Path, most_seconds: float = MOST_SECONDS) -> str | None:
    """What is wrong with how a case ends, below a `root` that was built; None if nothing is."""
    config = root / "config.yaml"
    config.write_bytes(case.content)
    arguments = [str(config) if one == "CONFIG" else one for one in case.arguments]
    here = os.getcwd()
    os.chdir(root / "cwd")
    started = time.process_time()
    try:
        with patch("typer.testing._get_command", return_value=COMMAND), _in_time(most_seconds):
            result = CliRunner().invoke(app, arguments)
    except Late as late:
        return f"no answer in {time.process_time() - started:.1f} s of CPU time: {late}"
    finally:
        os.chdir(here)
    if "Traceback" in result.output or (result.exception and not isinstance(result.exception, SystemExit)):
        return f"a traceback: {result.exception!r} {result.output[-1500:]}"
    if made := [*(root / "cwd").iterdir(), *(root / "out").glob("*")]:
        return f"it wrote {made}"
    if result.exit_code not in (0, 2):
        return f"exit {result.exit_code}: {result.stderr[-1500:]}"
    if result.exit_code == 2 and not (MESSAGE.search(result.stderr) or USAGE.search(result.stderr)):
        return f"exit 2 without key, expected, got and remedy: {result.stderr[-1500:]}"
    return None
