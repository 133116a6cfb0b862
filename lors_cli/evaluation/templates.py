"""The templates of tasks that are not trusted, rendered so that they reach data only, within bounds of time and memory.

lm-eval renders the texts of its tasks by Jinja, in which a template reaches everything that Python has. Jinja's own
sandbox keeps attributes of Python's insides from it, but leaves the methods of any object that a data set may hold,
such as ``save`` of an image.
"""

import datetime
import os
import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import lm_eval.utils
import psutil
from jinja2 import Template, Undefined
from jinja2.exceptions import SecurityError
from jinja2.runtime import LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Joiner, Namespace

SECONDS = 10  # for one text; what tasks need is a thousandth of one
MEMORY = 2**30  # bytes, above what the process has
PLAIN = (str, int, float, list, tuple, dict, range, type(None), datetime.date, datetime.time, datetime.timedelta)
OF_JINJA = (LoopContext, Macro, Cycler, Joiner, Namespace, Undefined)


class Sandbox(ImmutableSandboxedEnvironment):
    """lm-eval's environment, in Jinja's sandbox, with the attributes of plain data alone."""

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Whether a template may use an attribute: a public one of plain data or of Jinja's own objects."""
        return isinstance(obj, PLAIN + OF_JINJA) and super().is_safe_attribute(obj, attr, value)

    def from_string(self, *arguments: Any, **options: Any) -> Template:
        """Compile a template, which computes what is constant in it."""
        with _bounded():
            return super().from_string(*arguments, **options)


class _Bounded(Template):
    def render(self, *arguments: Any, **options: Any) -> str:
        with _bounded():
            return super().render(*arguments, **options)


Sandbox.template_class = _Bounded


@contextmanager
def sandboxed() -> Iterator[None]:
    """Have lm-eval render in the sandbox."""
    before = lm_eval.utils.env
    sandbox = Sandbox(loader=before.loader, undefined=before.undefined, keep_trailing_newline=True)
    sandbox.filters["regex_replace"] = before.filters["regex_replace"]
    lm_eval.utils.env = sandbox
    try:
        yield
    finally:
        lm_eval.utils.env = before


@contextmanager
def _bounded() -> Iterator[None]:
    """End what takes too long or too much memory; other threads than the first, and macOS's memory, go unwatched."""
    alone = threading.current_thread() is threading.main_thread()
    with _of_memory():
        try:
            with _timed() if alone else nullcontext():
                yield
        except _TimeOver:
            raise SecurityError(f"a template takes longer than {SECONDS} seconds") from None
        except MemoryError:
            raise SecurityError(f"a template needs more than {MEMORY / 2**30:.0f} GiB of memory") from None


class _TimeOver(BaseException):
    """Jinja's compiler drops each Exception of a constant, and leaves that to the rendering."""


@contextmanager
def _timed() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise _TimeOver

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _of_memory() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = _PROCESS.memory_info().vms + MEMORY
    if soft != resource.RLIM_INFINITY and soft <= most:
        yield
        return
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


_PROCESS = psutil.Process(os.getpid())
