"""The only place that prints. Messages and progress go to stderr, results to stdout.

On a terminal progress is a bar; elsewhere (a SLURM log) it is a plain line now and then. Every message, shown or
not, also goes to the log file of the run.
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

from lors_cli import interrupts
from lors_cli.errors import LorsError, name_file

log = logging.getLogger("lors_cli")

LIBRARIES = ("transformers", "lm_eval", "datasets", "accelerate", "huggingface_hub", "torch", "httpx", "bitsandbytes")
PLAIN_EVERY_SECONDS = 30.0
PLAIN_EVERY_FRACTION = 0.1


def setup(verbosity: int) -> None:
    """Prepare logging: -1 shows warnings only, 0 messages, 1 details."""
    shown = logging.StreamHandler(sys.stderr)
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
    """Let a library draw its bars on a terminal; elsewhere, and for the programs that it starts, drop stderr."""
    terminal = sys.stderr.isatty()
    original, kept = sys.stderr, os.dup(2)
    with open(os.devnull, "w") as nowhere:
        shown = os.fdopen(os.dup(2), "w") if terminal else nowhere
        os.dup2(nowhere.fileno(), 2)
        sys.stderr = shown
        try:
            yield
        finally:
            sys.stderr = original
            os.dup2(kept, 2)
            os.close(kept)
            shown.close()


def _quiet_libraries() -> None:
    """Keep the libraries' own bars and remarks off the screen; their errors still raise."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    warnings.filterwarnings("ignore", module=r"(?!lors_cli)")
    for library in (
        "transformers",
        "lm_eval",
        "datasets",
        "accelerate",
        "huggingface_hub",
        "torch",
        "httpx",
        "bitsandbytes",
    ):
        logging.getLogger(library).setLevel(logging.ERROR)


class _MessageFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        return prefix + record.getMessage()


def result(text: str, end: str = "\n") -> None:
    """Print what a script would read, on stdout; characters that its encoding lacks are escaped."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), end=end, flush=True)


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
def progress(label: str, total: int, done: int = 0) -> Iterator[Callable[..., None]]:
    """Show the progress of `total` steps, `done` of which an earlier run did.

    Yields:
        what to call after each step, with a few words about it; ``steps=0`` only changes the words.

    """
    started, before, last_time, last_done = time.monotonic(), done, time.monotonic(), done
    shown = log.handlers[0].level <= logging.INFO if log.handlers else False
    terminal = shown and sys.stderr.isatty()
    if terminal:
        from rich.console import Console
        from rich.progress import Progress

        bar = Progress(console=Console(stderr=True), transient=True)
        task = bar.add_task(label, total=total, completed=done)

    def advance(detail: str = "", steps: int = 1) -> None:
        nonlocal done, last_time, last_done
        interrupts.check()
        done += steps
        if terminal:
            bar.update(task, completed=done, description=f"{label} {detail}")
            return
        now = time.monotonic()
        due = now - last_time > PLAIN_EVERY_SECONDS or done - last_done >= PLAIN_EVERY_FRACTION * total
        if done > before and (due or (steps and done == total)):
            left = (now - started) / (done - before) * (total - done)
            log.info("%s %d/%d, %.0f s left %s", label, done, total, left, detail)
            last_time, last_done = now, done

    with bar if terminal else nullcontext():
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
