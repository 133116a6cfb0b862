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
    """An input that some linears share: their names, its statistics by kind, and a few tokens of the last window."""

    linears: list[str]
    statistics: dict[str, Any]
    probe: Tensor

    @property
    def tokens(self) -> int:
        """How many tokens the statistics have seen, over all processes."""
        return next((int(statistic.tokens) for statistic in self.statistics.values()), 0)

    def permute(self, index: Tensor) -> None:
        """Reorder the features as ``x[..., index]`` does."""
        self.probe = self.probe[..., index]
        for statistic in self.statistics.values():
            statistic.permute(index)

    def start(self, kinds: Iterable[str]) -> None:
        """Begin with new statistics."""
        self.statistics = {kind: STATISTICS[kind]() for kind in kinds}

    def add(self, x: Tensor) -> None:
        """Take in the input of one window, (1, length, C)."""
        flat = x.flatten(0, -2)
        # a copy, since the block may change its own tensors in place
        self.probe = flat[:: max(len(flat) // PROBE_TOKENS, 1)][:PROBE_TOKENS].clone()
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
        # this window's tensors and their versions, which move when one is changed in place, by their input's place
        self._now: dict[int, tuple[Tensor, int]] = {}
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
            self._now[place] = x, x._version
            shared.add(x)
        elif not self._is(place, x):
            raise LorsError(
                f"{name} shares its input with {shared.linears[0]} in some windows only, which is not supported"
            )
        if self._calls == self._last_calls and not self._whole:
            raise StopPassError

    def _meet(self, name: str, x: Tensor) -> Input:
        """The input that `name` gets in the first window: that of an earlier linear, or a new one."""
        place = next((place for place in self._now if self._is(place, x)), None)
        if place is None:
            self.inputs.append(Input([], {kind: STATISTICS[kind]() for kind in self._kinds}, x[:0]))
            place = len(self.inputs) - 1
        self.inputs[place].linears.append(name)
        self._input_of[name] = self.inputs[place]
        return self.inputs[place]

    def _is(self, place: int, x: Tensor) -> bool:
        """Whether `x` is what the first linear of an input got in this window, unchanged since."""
        tensor, version = self._now.get(place, (None, 0))
        return tensor is x and version == x._version
