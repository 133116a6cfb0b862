"""Which adapters fit which linears: the ranks that a method can have, and the shapes that its tensors must have."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor

from lors_cli.adapters.base import Adapter

Size = tuple[int, int]


def misfit(kind: type[Adapter], rank: int, size: Size) -> str | None:
    """Why a method cannot have that rank on a weight of that size (R, C); None if it can."""
    try:
        kind.shapes(*size, rank)
    except ValueError as error:
        return str(error)
    return None


def ranks(kind: type[Adapter], sizes: Iterable[Size]) -> str:
    """The ranks that a method can have on weights of all of these sizes, in words."""
    distinct = set(sizes)
    largest = min(min(size) for size in distinct)
    fitting = [rank for rank in range(1, largest + 1) if not any(misfit(kind, rank, size) for size in distinct)]
    return f"at most {largest}" if len(fitting) == largest else f"one of {', '.join(map(str, fitting))}"


def misfits(
    kind: type[Adapter],
    rank: Callable[[str], int],
    tensors: Mapping[str, Mapping[str, Tensor]],
    sizes: Mapping[str, Size],
) -> list[str]:
    """Which of the `tensors`, by module and name, do not fit the linears of these `sizes`, in words.

    `rank` gives the one of each linear.
    """
    problems = []
    for name, named in tensors.items():
        if name not in sizes:
            problems.append(f"there is no linear {name}")
            continue
        got = {key: tuple(tensor.shape) for key, tensor in named.items()}
        wanted: Any = misfit(kind, rank(name), sizes[name]) or kind.shapes(*sizes[name], rank(name))
        if got != wanted:
            problems.append(f"{name} {sizes[name]} needs {wanted}, got {got}")
    return problems
