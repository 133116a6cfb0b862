"""Reading data once for many runs that are checked together and that read the same, such as those of a sweep."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
_made: dict[str, object] | None = None


@contextmanager
def shared() -> Iterator[None]:
    """What is read inside is kept until the end, for those that read the same again.

    Only for checks: work has to read what it works on, and notes that its files stay what they were.
    """
    global _made
    before, _made = _made, {} if _made is None else _made
    try:
        yield
    finally:
        _made = before


def read(key: object, make: Callable[[], T]) -> T:
    """What `make` gives, or gave before for the same `key`, whose text tells what is read and how."""
    if _made is None:
        return make()
    known = repr(key)
    if known not in _made:
        _made[known] = make()
    return _made[known]  # type: ignore[return-value]
