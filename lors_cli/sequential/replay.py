"""Running a model block by block: what each block is called with is captured once, then replayed.

A block is called with the states of the block before it and its own recorded arguments, and needs nothing else of the
model, so only one block has to be in memory.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lors_cli.errors import LorsError
from lors_cli.models.linears import find_blocks

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class _CapturedError(Exception):
    """Raised once the last block's arguments are known; the head is not needed."""


class Calls:
    """What the blocks are called with besides the states: ``arguments[window][index]``, whatever they are called."""

    def __init__(self) -> None:
        self.arguments: dict[int, list[Arguments]] = {}

    def run(
        self, block: nn.Module, index: int, window: int, states: Tensor, dtype: torch.dtype | None = None
    ) -> Tensor:
        """The output states of `block` (the `index`-th) on the `states` of `window`.

        With a `dtype`, which is that of the block now, all that the block is called with is cast to it.
        """
        args, kwargs = self.arguments[window][index]
        if dtype:
            states, args, kwargs = _cast((states, args, kwargs), dtype)
        versions = [(tensor, tensor._version) for tensor in _tensors((args, kwargs))]
        result = states_of(block(states, *args, **kwargs))
        if any(tensor._version != version for tensor, version in versions):
            raise LorsError("the block changes what it is called with, so it cannot be run a second time")
        return result


def states_of(output: Any) -> Tensor:
    """The states in what a block returns: a tensor, or the first of a tuple."""
    states: Tensor = output[0] if isinstance(output, tuple | list) else output
    return states


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """`value` with its floating point tensors in `dtype`."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: _cast(one, dtype) for key, one in value.items()}
    if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
        return type(value)(_cast(one, dtype) for one in value)
    return value


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | tuple | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part)


@torch.no_grad()
def capture(model: nn.Module, windows: Mapping[int, Tensor], put: Callable[[int, Tensor], None]) -> Calls:
    """Record the calls of all blocks by passing windows of token ids, (1, length), through a model of identity blocks.

    Blocks differ in their arguments (sliding and full attention, say), so each one's are kept. A tensor equal to the
    one of the window before is kept once, since most do not depend on the tokens.

    Args:
        model: only what lies before the blocks needs its weights.
        windows: token ids by the window's number.
        put: takes the states that enter the first block, (1, length, hidden), of each window.

    """
    calls = Calls()
    before: list[Arguments] | None = None
    with _recorders(model) as recorders:
        _find_form(model, recorders, next(iter(windows.values())))
        for window, ids in windows.items():
            with suppress(_CapturedError):
                model(input_ids=ids, use_cache=False)
            put(window, recorders[0].states)
            recorded = [recorder.arguments for recorder in recorders]
            before = [_share(new, old) for new, old in zip(recorded, before or recorded, strict=True)]
            calls.arguments[window] = before
    return calls


def _find_form(model: nn.Module, recorders: list["_Recorder"], ids: Tensor) -> None:
    """Let the recorders return what the model expects of a block: the states, or a tuple that begins with them."""
    failed: Exception | None = None
    forms: list[Callable[[Tensor], Any]] = [lambda states: states]
    forms += [partial(_with_nothing, count=count) for count in range(3)]
    for form in forms:
        for recorder in recorders:
            recorder.form = form
            recorder.__dict__.pop("states", None)
        try:
            with suppress(_CapturedError):
                model(input_ids=ids, use_cache=False)
            if all(recorder.states.shape == recorders[0].states.shape for recorder in recorders):
                return
        except Exception as error:  # the code of any model; the first form is the usual one, so its error tells most
            failed = failed or error
    raise failed or LorsError("the blocks do not return states of one shape")


def _with_nothing(states: Tensor, count: int) -> tuple[Any, ...]:
    return (states, *[None] * count)


class _Recorder(nn.Module):
    """Stands in for a block: keeps its arguments and returns the states as they came, in the `form` of the model."""

    def __init__(self, block: nn.Module, *, last: bool) -> None:
        super().__init__()
        self.__dict__["block"] = block  # not a submodule: only asked for attributes such as its attention type
        self.last = last
        self.form: Callable[[Tensor], Any]
        self.states: Tensor
        self.arguments: Arguments

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["block"], name)

    def forward(self, states: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.states, self.arguments = states, (args, kwargs)
        if self.last:
            raise _CapturedError
        return self.form(states)


@contextmanager
def _recorders(model: nn.Module) -> Iterator[list[_Recorder]]:
    """Replace every block by a recorder, and put the blocks back afterwards."""
    _, blocks = find_blocks(model)
    originals = list(blocks)
    recorders = [_Recorder(block, last=block is originals[-1]) for block in originals]
    for index, recorder in enumerate(recorders):
        blocks[index] = recorder
    try:
        yield recorders
    finally:
        for index, block in enumerate(originals):
            blocks[index] = block


def _share(new: Any, old: Any) -> Any:
    """`new`, with tensors equal to those at the same place in `old` replaced by them."""
    if isinstance(new, Tensor):
        same = isinstance(old, Tensor) and old.shape == new.shape and old.dtype == new.dtype and torch.equal(old, new)
        return old if same else new
    if isinstance(new, dict) and isinstance(old, dict):
        return {key: _share(value, old.get(key)) for key, value in new.items()}
    if isinstance(new, tuple | list) and isinstance(old, tuple | list) and len(new) == len(old):
        return type(new)(_share(a, b) for a, b in zip(new, old, strict=True))
    return new
