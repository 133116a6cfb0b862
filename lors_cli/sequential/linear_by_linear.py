"""``sequential: linear``: each linear sees the pruned ones before it inside its block.

For each input that linears share, in the block's order, all windows go through the block up to that input; then the
linears of that input are pruned. A last pass makes the states of the next block. The memory is that of one window.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

import torch
from torch import Tensor, nn

from lors_cli.errors import LorsError
from lors_cli.sequential.gather import Input, StopPassError
from lors_cli.sequential.loop import BlockLoop


@torch.no_grad()
def run(
    linears: dict[str, nn.Linear],
    kinds: list[str],
    loop: BlockLoop,
    block: nn.Module,
    prune: Callable[[Input], None],
    *,
    advance: bool = True,
) -> None:
    """Prune the `linears` of `block` one input after another, and take the windows of `loop` to the next block.

    Args:
        linears: those to prune, by their name in the block.
        kinds: the statistics to gather for each input.
        loop: gives the windows, and takes their output states.
        block: the block, on the device.
        prune: prunes the linears of one input in place.
        advance: whether the windows go to the next block; if not, somebody else takes them there.

    Raises:
        LorsError: a linear was not used, or used twice; or the windows took different ways through the block.

    """
    inputs = loop.gather(
        linears, block, [], windows=list(loop.windows)[:1]
    )  # in the block's order, as one window shows
    route = _Route([shared.linears[0] for shared in inputs])
    with route.watched(linears):
        for shared in inputs:
            shared.start(kinds)
            for window in loop.windows:
                shared.add(route.input_of(shared.linears[0], partial(loop.forward, block, window, "statistics")))
            shared.reduce()
            prune(shared)
        if advance:
            loop.advance(block, before_each=route.start)


class _Route:
    """The order in which a block reaches its inputs, each known by the first linear that gets it."""

    def __init__(self, order: list[str]) -> None:
        self._order = order
        self._reached = 0
        self._last: str | None = None
        self._input: Tensor | None = None

    def start(self, last: str | None = None) -> None:
        """A window begins, which stops at the linear `last`."""
        self._reached, self._last, self._input = 0, last, None

    def input_of(self, linear: str, run: Callable[[], object]) -> Tensor:
        """What `linear` gets when `run` takes a window through the block; the pass ends there."""
        self.start(linear)
        with suppress(StopPassError):
            run()
        if self._input is None:
            raise LorsError(f"the windows took different ways through the block: one did not reach {linear}")
        return self._input

    @contextmanager
    def watched(self, linears: dict[str, nn.Linear]) -> Iterator[None]:
        """While this lasts, the linears report what they get."""
        hooks = [
            linears[name].register_forward_pre_hook(lambda _, given, name=name: self._see(name, given[0]))
            for name in self._order
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _see(self, name: str, x: Tensor) -> None:
        if name in self._order[: self._reached]:
            raise LorsError(f"the block uses {name} twice, which sequential: linear does not support")
        if name != self._order[self._reached]:
            raise LorsError(f"the windows took different ways through the block, at {self._order[self._reached]}")
        self._reached += 1
        if name == self._last:
            self._input = x
            raise StopPassError
