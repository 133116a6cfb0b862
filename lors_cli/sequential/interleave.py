"""``sequential: linear``: each linear sees the pruned ones before it inside its block, in one pass over the windows.

All windows go through the block side by side: each is halted at the next input that linears share, until all are
there; these linears are pruned by what arrived; all go on. A halted forward pass is a greenlet, so this works for any
block that is written as ordinary code. It holds the activations of all windows at one place in the block.
"""

from collections.abc import Callable

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor, nn

from lors_cli.errors import LorsError
from lors_cli.pruning.statistics import STATISTICS
from lors_cli.sequential.gather import Input
from lors_cli.sequential.walk import Walk


@torch.no_grad()
def run(
    linears: dict[str, nn.Linear],
    inputs: list[Input],
    kinds: list[str],
    walk: Walk,
    block: nn.Module,
    prune: Callable[[Input], None],
) -> None:
    """Take the windows of `walk` through `block`, pruning its `linears` on the way.

    Args:
        linears: those to prune, by their name in the block.
        inputs: which of them share an input, in the order of the block.
        kinds: the statistics to gather for each input.
        walk: gives the windows, and takes their output states.
        block: the block, on the device.
        prune: prunes the linears of one input in place.

    Raises:
        LorsError: the windows took different ways through the block.

    """
    main = getcurrent()

    def halt(place: int, x: Tensor) -> None:
        main.switch((place, x))

    hooks = [
        linears[shared.linears[0]].register_forward_pre_hook(lambda _, given, place=place: halt(place, given[0]))
        for place, shared in enumerate(inputs)
    ]
    passes = [greenlet(lambda window=window: _through(walk, block, window)) for window in walk.windows]
    try:
        for place, shared in enumerate(inputs):
            shared.statistics = {kind: STATISTICS[kind]() for kind in kinds}
            for one in passes:
                reached = one.switch()
                if reached is None or reached[0] != place:
                    raise LorsError(f"the windows took different ways through the block, at {shared.linears[0]}")
                shared.add(reached[1])
            shared.reduce()
            prune(shared)
        for one in passes:
            one.switch()
            if not one.dead:
                raise LorsError(f"the block uses one of {', '.join(linears)} twice: not supported linear by linear")
    finally:
        for hook in hooks:
            hook.remove()


def _through(walk: Walk, block: nn.Module, window: int) -> None:
    walk.keep(window, walk.forward(block, window, "linear by linear"))
