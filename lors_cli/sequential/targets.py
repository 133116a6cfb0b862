"""What the blocks of the dense model put out for each calibration window: what pruned blocks are brought back to.

``layer``: on the states that the pruned blocks before it left, so only the block's own error is repaired. ``dense``: on
the dense model's own states, which are kept up from block to block beside those of the pruned one, so that the drift
of the blocks before it is repaired too.
"""

from collections.abc import Callable, Mapping

from torch import Tensor

from lors_cli.sequential.states import States

DENSE = "dense "  # begins the keys of the dense model's states in the record, beside those of the pruned model's


class Targets:
    """The targets of one block after another, in `states` of their own."""

    def __init__(self, states: States) -> None:
        self.own_stream = states.durable
        self.digests: dict[str, str] = {}
        self._states = states

    def enter(self, first: int, placement: str) -> None:
        """Get ready for block `first`; the dense model's own states that enter block 0 are still to be put."""
        self._states.open(first if self.own_stream else 0, placement)

    def put(self, window: int, output: Tensor) -> None:
        """Keep what the dense block puts out for `window`."""
        self._states.put(window, output)

    def run(self, window: int, block: Callable[[Tensor], Tensor]) -> None:
        """Take the dense model's own states of `window` through the dense `block`."""
        self._states.put(window, block(self._states[window]))

    def turn(self) -> None:
        """All were put: they are now the targets of the block, and what enters the next one of the dense model."""
        self.digests = {f"{DENSE}{window}": digest for window, digest in self._states.turn().items()}

    def __getitem__(self, window: int) -> Tensor:
        """The target of `window`, (1, length, hidden), on the compute device."""
        return self._states[window]

    def damage(self, block: int, digests: Mapping[str, str]) -> str | None:
        """Why the dense model's own states that enter `block` must not be used; None if they are as they were put."""
        own = {key.removeprefix(DENSE): digest for key, digest in digests.items() if key.startswith(DENSE)}
        return self._states.damage(block, own) if self.own_stream else None

    def remove(self) -> None:
        """Delete the files."""
        self._states.remove()
