"""What can go wrong, and the exit status each kind ends with.

    LorsError              the work failed                       exit 1
    ├── DivergedError      a training reached NaN or infinity    exit 1
    └── RequestError       the request is wrong, nothing began   exit 2

A ``RequestError`` carries every problem that was found, so that a file with three mistakes is corrected once.
"""

import difflib
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


class LorsError(Exception):
    """The work failed; the message says what happened and what to do."""

    exit_status = 1


class DivergedError(LorsError):
    """A training reached values that are not finite, as too high a learning rate does."""


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


def together(make: Callable[[Item], Made], items: Iterable[Item]) -> list[Made]:
    """What `make` makes of each item.

    Raises:
        RequestError: with the problems of all items, each once: one mistake in a file is in all that is made of it.

    """
    made: list[Made] = []
    problems: list[Problem] = []
    for item in items:
        try:
            made.append(make(item))
        except RequestError as error:
            problems += error.problems
    if problems:
        raise RequestError(*dict.fromkeys(problems))
    return made


def nearest(name: str, known: Collection[str]) -> str:
    """A hint that names the closest of the `known` names, or lists them when none is close."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known))}"
