"""The only place that prints. Messages and progress go to stderr, results to stdout.

On a terminal progress is a bar, above which messages are printed; elsewhere (a SLURM log) it is a plain line now and
then. Every message, shown or not, also goes to the log file of the run.
"""

import logging
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from lors_cli import interrupts
from lors_cli.errors import LorsError, name_file
from lors_cli.progress_bar import REFRESHES, ProgressBar, terminal_width, wrapped

if TYPE_CHECKING:
    from rich.live import Live

log = logging.getLogger("lors_cli")

LIBRARIES = ("transformers", "lm_eval", "datasets", "accelerate", "huggingface_hub", "torch", "httpx", "bitsandbytes")
PLAIN_EVERY_SECONDS = 30.0
PLAIN_EVERY_FRACTION = 0.1
PLAIN_APART_SECONDS = 2.0


def setup(verbosity: int) -> None:
    """Prepare logging: -1 shows warnings only, 0 messages, 1 details."""
    shown = _Shown()
    shown.setLevel({-1: logging.WARNING, 0: logging.INFO}.get(verbosity, logging.DEBUG))
    shown.setFormatter(_MessageFormatter())
    for handler in log.handlers:
        handler.close()
    log.handlers[:] = [shown]
    log.setLevel(logging.DEBUG)
    log.propagate = False
    logging.raiseExceptions = False  # a log file on a full disk must not print tracebacks
    if verbosity < 1:
        _quiet_libraries()


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Also append every message to the file `path`, with its time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = logging.FileHandler(path, encoding="utf-8")
    written.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(written)
    try:
        yield
    finally:
        log.removeHandler(written)
        with suppress(OSError):  # a full disk, which is reported where it matters
            written.close()


@contextmanager
def third_party_output() -> Iterator[None]:
    """Let a library draw its bars on a terminal; elsewhere, and for the programs that it starts, drop stderr.

    Messages are shown as before.
    """
    original, kept, terminal = sys.stderr, os.dup(2), sys.stderr.isatty()
    handlers = [one for one in log.handlers if isinstance(one, _Shown) and one.stream is sys.__stderr__]
    with open(os.devnull, "w") as nowhere, os.fdopen(os.dup(2), "w") as still_shown:
        os.dup2(nowhere.fileno(), 2)
        sys.stderr = still_shown if terminal else nowhere
        for handler in handlers:
            handler.stream = still_shown
        try:
            yield
        finally:
            for handler in handlers:
                handler.stream = original
            sys.stderr = original
            os.dup2(kept, 2)
            os.close(kept)


def _quiet_libraries() -> None:
    """Keep the libraries' own bars and remarks off the screen; their errors still raise."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    warnings.filterwarnings("ignore", module=r"(?!lors_cli)")
    for library in LIBRARIES:
        logging.getLogger(library).setLevel(logging.ERROR)


class _Shown(logging.Handler):
    """Prints messages on stderr: above the bar if there is one, and on a terminal broken between words."""

    def __init__(self) -> None:
        super().__init__()
        self.stream: TextIO = sys.stderr
        self.live: Live | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Print a message."""
        try:
            message = self.format(record)
            if self.stream.isatty():
                message = wrapped(message, terminal_width(self.stream))
            if self.live:
                self.live.console.out(message, highlight=False)
            else:
                self.stream.write(message + "\n")
                self.stream.flush()
        except Exception:  # as logging's own handlers do: a message never ends the work
            self.handleError(record)

    @contextmanager
    def drawing(self, bar: ProgressBar) -> Iterator[bool]:
        """Draw `bar`, if stderr is a terminal; within another bar it is not drawn. Yields whether there is a bar."""
        if self.live or self.level > logging.INFO or not sys.stderr.isatty():
            yield self.live is not None
            return
        from rich.console import Console
        from rich.live import Live

        options: dict[str, Any] = {"transient": True, "refresh_per_second": REFRESHES, "redirect_stdout": False}
        with Live(bar, console=Console(stderr=True), **options) as self.live:
            try:
                yield True
            finally:
                self.live = None


class _MessageFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        return prefix + record.getMessage()


def result(text: str, end: str = "\n") -> None:
    """Print what a script would read, on stdout; characters that its encoding lacks are escaped."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), end=end, flush=True)


def fitted(text: str) -> str:
    """A text for `result`, on a terminal with its lines broken between words; nothing else is read by a script."""
    return wrapped(text, terminal_width(sys.stdout)) if sys.stdout.isatty() else text


def error(problem: BaseException, *, debug: bool) -> None:
    """Render an error on stderr: its message, or with `debug` its traceback."""
    if isinstance(problem, OSError):
        name_file(problem)
    if debug:
        traceback.print_exception(problem)
    elif isinstance(problem, LorsError):
        log.error("%s", problem)
    elif isinstance(problem, OSError) and problem.filename:
        log.error("%s: %s (run again with --debug for the traceback)", problem.filename, problem.strerror)
    else:
        log.error("%s: %s (run again with --debug for the traceback)", type(problem).__name__, problem)


@contextmanager
def progress(label: str, total: int, done: int = 0, *, counted: bool = True) -> Iterator[Callable[..., None]]:
    """Show the progress of `total` steps, `done` of which an earlier run did.

    Args:
        label: what is done.
        total: steps.
        done: steps.
        counted: whether the number of steps says anything to people; else the first words about a step should.

    Yields:
        what to call after each step, with a few words about it, the most important first; ``steps=0`` only changes
        the words.

    """
    bar = ProgressBar(label, total, done, counted=counted)
    before, last_time, last_done = done, time.monotonic(), done
    shown = next((handler for handler in log.handlers if isinstance(handler, _Shown)), None)

    def advance(*parts: str, steps: int = 1) -> None:
        nonlocal last_time, last_done
        interrupts.check()
        bar.advance(parts, steps)
        if drawn or bar.done == before:
            return
        now = time.monotonic()
        passed = now - last_time
        far = passed > PLAIN_APART_SECONDS and bar.done - last_done >= PLAIN_EVERY_FRACTION * total
        due = passed > PLAIN_EVERY_SECONDS or far
        if due or (steps and bar.done == total):
            log.info("%s %d/%d, %.0f s left %s", label, bar.done, total, bar.left(), ", ".join(bar.parts))
            last_time, last_done = now, bar.done

    with shown.drawing(bar) if shown else nullcontext(False) as drawn:
        yield advance


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table with aligned columns; all but the first are aligned to the right."""
    table = [header, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]

    def line(cells: list[str]) -> str:
        padded = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return f"| {' | '.join(padded)} |"

    rule = "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return "\n".join([line(header), rule, *map(line, rows)])
