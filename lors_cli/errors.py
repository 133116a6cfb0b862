"""What can go wrong, and the exit status each kind ends with.

    LorsError              the work failed                       exit 1
    ├── DivergedError      a training reached NaN or infinity    exit 1
    ├── UnmeasurableError  a model or a task gives no number     exit 1
    └── RequestError       the request is wrong, nothing began   exit 2

A ``RequestError`` carries every problem that was found, so that a file with three mistakes is corrected once.
"""

import difflib
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import IOBase
from traceback import walk_tb
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


class LorsError(Exception):
    """The work failed; the message says what happened and what to do."""

    exit_status = 1


class DivergedError(LorsError):
    """A training reached values that are not finite, as too high a learning rate does."""


class UnmeasurableError(LorsError):
    """What was to be measured is not a number, or does not measure the model."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a request: where it is, what was expected, what was found, what to do."""

    key: str
    expected: str
    got: str
    remedy: str
    file: str | None = None
    line: int | None = None

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        key = f"{where}: {self.key}" if where else self.key
        return f"{key}\n  expected: {self.expected}\n  got:      {self.got}\n  remedy:   {self.remedy}"


class RequestError(LorsError):
    """The request is wrong; raised before any work starts."""

    exit_status = 2

    def __init__(self, *problems: Problem) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems

    def in_file(self, file: str) -> "RequestError":
        """The same problems; each names `file` unless it already names one."""
        named = RequestError(*(p if p.file else replace(p, file=file) for p in self.problems))
        return named.with_traceback(self.__traceback__)


def request_error(key: str, expected: str, got: object, remedy: str, file: object = None) -> RequestError:
    """A ``RequestError`` with a single problem."""
    return RequestError(Problem(key, expected, str(got), remedy, str(file) if file is not None else None))


@contextmanager
def as_value_error() -> Iterator[None]:
    """Turn the error of a wrong request into a ValueError, for callers without a config."""
    try:
        yield
    except RequestError as error:
        raise ValueError("; ".join(f"{p.key}: {p.expected}, got {p.got}: {p.remedy}" for p in error.problems)) from None


def gathered(make: Callable[[Item], Made], items: Iterable[Item]) -> tuple[list[Made], list[Problem]]:
    """What `make` makes of the items of which it makes something, and the problems of the others, each once.

    One mistake in a file is in all that is made of it.
    """
    made: list[Made] = []
    problems: list[Problem] = []
    for item in items:
        try:
            made.append(make(item))
        except RequestError as error:
            problems += error.problems
    return made, list(dict.fromkeys(problems))


def together(make: Callable[[Item], Made], items: Iterable[Item]) -> list[Made]:
    """What `make` makes of each item.

    Raises:
        RequestError: with the problems of all items.

    """
    made, problems = gathered(make, items)
    if problems:
        raise RequestError(*problems)
    return made


def first_line(error: BaseException, otherwise: str = "") -> str:
    """The first line of what an error says; of one that says nothing `otherwise`, or its class."""
    return (str(error).strip() or otherwise or type(error).__name__).splitlines()[0]


def name_file(error: OSError) -> None:
    """Let an error of a read or a write say of which file, as one of an open does: of the innermost that was open."""
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    values = [value for frame in reversed(frames) for value in frame.f_locals.values() if isinstance(value, IOBase)]
    names = [name for value in values if isinstance(name := getattr(value, "name", None), str)]
    if error.errno and error.filename is None and names:
        error.filename = names[0]


def close(name: str, known: Collection[str]) -> str | None:
    """The one of the `known` names that is spelt most like `name`; None if none is."""
    return next(iter(difflib.get_close_matches(name, known, n=1, cutoff=0.55)), None)


def nearest(name: str, known: Collection[str]) -> str:
    """A hint that names the closest of the `known` names, or lists them when none is close."""
    likely = close(name, known)
    return f"did you mean {likely!r}?" if likely else f"known: {', '.join(sorted(known))}"


def removal(*keys: str, together: bool = False) -> str:
    """The remedy for keys one of which has to go, or all `together`, in a file or by an override."""
    nulls = [f"{key}=null" for key in keys]
    if together:
        return f"remove {' and '.join(keys)} (on the command line: {' '.join(nulls)})"
    return f"remove {sequence(keys)} (on the command line: {sequence(nulls)})"


def sequence(words: Iterable[str]) -> str:
    """The words as a choice: a, b or c."""
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last
