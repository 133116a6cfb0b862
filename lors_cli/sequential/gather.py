"""What calibration learns about the inputs of a block's linears, in one pass over the windows.

Linears that get the same tensor (q, k and v; gate and up) share one statistic. The pass over a window ends with the
last linear's input: what the block makes of it is not needed.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lors_cli import processes
from lors_cli.errors import LorsError
from lors_cli.pruning.statistics import STATISTICS

PROBE_TOKENS = 128  # the reconstruction error of a linear is measured on so many tokens


@dataclass(eq=False)
class Input:
    """An input that some linears share: their names, its statistics by kind, and itself in the last window."""

    linears: list[str]
    statistics: dict[str, Any]
    last: Tensor

    @property
    def tokens(self) -> int:
        """How many tokens the statistics have seen, over all processes."""
        return next((int(statistic.tokens) for statistic in self.statistics.values()), 0)

    @property
    def probe(self) -> Tensor:
        """A few of the last window's tokens, (tokens, C)."""
        flat = self.last.flatten(0, -2)
        return flat[:: max(len(flat) // PROBE_TOKENS, 1)][:PROBE_TOKENS]

    def permute(self, index: Tensor) -> None:
        """Reorder the features as ``x[..., index]`` does."""
        self.last = self.last[..., index]
        for statistic in self.statistics.values():
            statistic.permute(index)

    def start(self, kinds: Iterable[str]) -> None:
        """Begin with new statistics."""
        self.statistics = {kind: STATISTICS[kind]() for kind in kinds}

    def add(self, x: Tensor) -> None:
        """Take in the input of one window, (1, length, C)."""
        self.last = x
        for statistic in self.statistics.values():
            statistic.add(x)

    def reduce(self) -> None:
        """Add the statistics up over all processes."""
        if processes.count() > 1:
            for statistic in self.statistics.values():
                statistic.reduce(processes.add_up)


class StopPassError(Exception):
    """Raised in a hook to end a pass: the rest of the block is not needed."""


@torch.no_grad()
def gather(
    linears: dict[str, nn.Linear],
    kinds: Iterable[str],
    windows: Iterable[int],
    run: Callable[[int], object],
    *,
    whole: bool = False,
) -> list[Input]:
    """Call `run` on each window of this process and gather the statistics `kinds` of the inputs of `linears`.

    With `whole` every pass goes to the end of the block.

    Returns:
        the inputs in the order in which the block uses them, their statistics added up over all processes.

    Raises:
        LorsError: linears that shared an input in one window do not in another.

    """
    watch = _Watch(list(kinds), whole=whole)
    with watch.hooks(linears):
        for window in windows:
            watch.start()
            with suppress(StopPassError):
                run(window)
    for shared in watch.inputs:
        shared.reduce()
    return watch.inputs


class _Watch:
    def __init__(self, kinds: list[str], *, whole: bool) -> None:
        self.inputs: list[Input] = []
        self._kinds, self._whole = kinds, whole
        self._input_of: dict[str, Input] = {}
        self._now: dict[int, Tensor] = {}  # this window's tensors, by the place of their input in the list
        self._calls, self._last_calls = 0, 0

    def start(self) -> None:
        """A window begins."""
        self._now.clear()
        self._last_calls, self._calls = self._calls, 0

    @contextmanager
    def hooks(self, linears: dict[str, nn.Linear]) -> Iterator[None]:
        handles = [
            linear.register_forward_pre_hook(lambda _, inputs, name=name: self._see(name, inputs[0]))
            for name, linear in linears.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _see(self, name: str, x: Tensor) -> None:
        self._calls += 1
        shared = self._input_of.get(name) or self._meet(name, x)
        place = self.inputs.index(shared)
        if shared.linears[0] == name:
            self._now[place] = x
            shared.add(x)
        elif self._now.get(place) is not x:
            raise LorsError(
                f"{name} shares its input with {shared.linears[0]} in some windows only, which is not supported"
            )
        if self._calls == self._last_calls and not self._whole:
            raise StopPassError

    def _meet(self, name: str, x: Tensor) -> Input:
        """The input that `name` gets in the first window: that of an earlier linear, or a new one."""
        place = next((place for place, tensor in self._now.items() if tensor is x), None)
        if place is None:
            self.inputs.append(Input([], {kind: STATISTICS[kind]() for kind in self._kinds}, x))
            place = len(self.inputs) - 1
        self.inputs[place].linears.append(name)
        self._input_of[name] = self.inputs[place]
        return self.inputs[place]
