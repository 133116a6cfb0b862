"""Taking a model's blocks one after another, and going on at the block where an interrupted run stopped.

What is done is recorded after every block, when its output and the states of the next one are on the disk.
"""

import logging
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lors_cli import console, processes
from lors_cli.errors import LorsError
from lors_cli.sequential import replay
from lors_cli.sequential.blocks import Blocks
from lors_cli.sequential.gather import Input, gather
from lors_cli.sequential.record import Record
from lors_cli.sequential.states import States
from lors_cli.sequential.targets import DENSE, Targets
from lors_cli.sparsity import mask
from lors_cli.stopping import gracefully

log = logging.getLogger(__name__)

Visit = Callable[[int, nn.Module], Any]
Flush = Callable[[int], dict[str, str]]


class BlockLoop:
    """A loop over `blocks` with the calibration `windows` (token ids (1, length) by number) of this process.

    Without windows the blocks are only visited.
    """

    def __init__(
        self, blocks: Blocks, windows: dict[int, Tensor], states: States | None, placement: str, record: Record
    ) -> None:
        self.blocks, self.record = blocks, record
        self.windows = windows
        self._states, self._placement = states, placement
        self.targets: Targets | None = None
        self._calls = replay.Calls()
        self._index = 0
        self._tokens = 0

    def run(
        self,
        phase: str,
        visit: Visit,
        passes: int,
        flush: Flush = lambda _: {},
        targets: Targets | None = None,
    ) -> None:
        """Visit the blocks that `phase` has left; `passes` tells the progress display how often each sees all windows.

        `flush` brings what the visit of a block wrote to the disk, and gives the digests of that. Where the states that
        an interrupted run left are damaged, the phase begins again. `targets` is where visits find what the dense
        blocks put out, if they `aim`.

        Raises:
            LorsError: an activation is not finite; the message names the block.
            KeyboardInterrupt: SIGTERM came; the block at hand was finished.

        """
        first, steps = len(self.record.done(phase)), max(passes * len(self.windows), 1)
        if first == len(self.blocks):
            return
        self.targets = targets
        if first and self._states:
            found = processes.everyone(self._damage(first, self._states))
            if reason := next(filter(None, found), None):
                self.record.begin_again(phase, reason)
                first = 0
        if first:
            log.info("%s: going on at block %d of %d", phase, first + 1, len(self.blocks))
        self._enter(first)
        self._started, self._tokens = time.monotonic(), 0
        with (
            gracefully("SIGTERM: stopping after this block") as stop,
            console.progress(phase, steps * len(self.blocks), first * steps, counted=False) as bar,
        ):
            for index in range(first, len(self.blocks)):
                self._index, self._bar, self._steps = index, bar, 0
                self.say("")
                with self.blocks.loaded(index) as block:
                    facts = visit(index, block)
                turned = self._states.turn() if self._states and index + 1 < len(self.blocks) else {}
                turned |= targets.digests if targets else {}
                written = flush(index)
                # all states are on the disk before this block counts as finished,
                states = {window: own for part in processes.everyone(turned) for window, own in part.items()}
                self.record.add(phase, facts, states, written)
                processes.wait()  # and it does before the file of the states before it is written to
                bar(*self._detail(""), steps=steps - self._steps)
                if stop.asked() and index + 1 < len(self.blocks):
                    log.warning("%s: stopped by SIGTERM after block %d of %d", phase, index + 1, len(self.blocks))
                    raise KeyboardInterrupt

    def _damage(self, first: int, states: States) -> str | None:
        """Why what an interrupted run left for block `first` must not be used."""
        kept = self.record.states
        own = {window: digest for window, digest in kept.items() if not window.startswith(DENSE)}
        return states.damage(first, own) or (self.targets and self.targets.damage(first, kept)) or None

    def _enter(self, first: int) -> None:
        """Capture what the blocks are called with, and take the states that enter block `first`."""
        if self._states is None:
            return
        states = self._states
        states.open(0, self._placement)
        if self.targets:
            self.targets.enter(first, self._placement)
        follows = self.targets if self.targets and self.targets.own_stream else None

        def put(window: int, entering: Tensor) -> None:
            if first == 0:
                states.put(window, entering)
                if follows:
                    follows.put(window, entering)

        with self.blocks.embeddings():
            self._calls = replay.capture(self.blocks.model, self.windows, put)
        if first:
            states.open(first, self._placement)
            return
        states.turn()
        if follows:
            follows.turn()

    def gather(
        self,
        linears: dict[str, nn.Linear],
        block: nn.Module,
        kinds: Iterable[str],
        windows: Iterable[int] | None = None,
        *,
        aim: bool = False,
    ) -> list[Input]:
        """The inputs of `linears` in `block` with their statistics, from a pass over the windows (or some of them).

        With `aim` the dense `block` gives its targets on the way, as `aim` does alone.

        Raises:
            LorsError: one of the linears was not used.

        """
        targets = self.targets if aim else None
        if targets and targets.own_stream:
            self.aim(block)
            targets = None

        def run(window: int) -> None:
            output = self.forward(block, window, "statistics")
            if targets:
                targets.put(window, output)

        inputs = gather(linears, kinds, windows or self.windows, run, whole=targets is not None)
        if targets:
            targets.turn()
        if missing := linears.keys() - {name for shared in inputs for name in shared.linears}:
            name = f"{self.blocks.prefix}.{self._index}.{min(missing)}"
            raise LorsError(f"{name}: no calibration token reached it, so its weights cannot be ranked")
        return inputs

    def gather_and_advance(self, linears: dict[str, nn.Linear], block: nn.Module, kinds: Iterable[str]) -> list[Input]:
        """Gather, and make the states of the next block in the same pass, for a visit that changes nothing."""

        def run(window: int) -> None:
            self.keep(window, self.forward(block, window, "profile"))

        return gather(linears, kinds, self.windows, run, whole=True)

    @torch.no_grad()
    def aim(self, block: nn.Module) -> None:
        """Let the dense `block` give its targets, where any are asked for."""
        if not self.targets:
            return
        for window in self.windows:
            if self.targets.own_stream:
                self.step("targets")
                self.targets.run(window, partial(self._calls.run, block, self._index, window))
            else:
                self.targets.put(window, self.forward(block, window, "targets"))
        self.targets.turn()

    def target(self, window: int) -> Tensor:
        """What the dense block at hand put out for `window`, float32."""
        if self.targets is None:
            raise ValueError("a loop without targets has nothing to aim at")
        return self.targets[window].float()

    def sample(self, block: nn.Module) -> Tensor:
        """The output states of `block` on the first window."""
        return self._output(block, next(iter(self.windows)))

    def forward(self, block: nn.Module, window: int, what: str, dtype: torch.dtype | None = None) -> Tensor:
        """The output states of `block` on `window`; `dtype` is that of the block, where it is not the model's."""
        self.step(what)
        return self._output(block, window, dtype)

    def _output(self, block: nn.Module, window: int, dtype: torch.dtype | None = None) -> Tensor:
        if self._states is None:
            raise ValueError("a loop without states has no windows")
        return self._calls.run(block, self._index, window, self._states[window], dtype)

    def keep(self, window: int, states: Tensor) -> None:
        """Take `states` as what enters the next block.

        Raises:
            LorsError: they are not finite.

        """
        if not mask.finite(states):
            name = f"{self.blocks.prefix}.{self._index}"
            raise LorsError(f"{name}: NaN or infinity in its output; check the model, or use dtype: float32")
        if self._states and self._index + 1 < len(self.blocks):
            self._states.put(window, states)

    @torch.no_grad()
    def advance(self, block: nn.Module, before_each: Callable[[], object] = lambda: None) -> None:
        """Run `block` on all windows for the states of the next one; after the last block nothing needs them."""
        if self._index + 1 < len(self.blocks):
            for window in self.windows:
                before_each()
                self.keep(window, self.forward(block, window, "states"))

    def forget(self) -> None:
        """Delete the states on disk, which only finished blocks make worth keeping."""
        for states in (self._states, self.targets):
            if states and processes.rank() == 0:
                states.remove()

    def step(self, what: str) -> None:
        """One window passes through the block."""
        self._tokens += self.windows[next(iter(self.windows))].numel()
        self._steps += 1
        self._bar(*self._detail(what))

    def say(self, what: str, linears: Iterable[str] = ()) -> None:
        """Show what is being done, and with which linears of the block, by the last part of their names."""
        places = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in linears))
        self._bar(*self._detail(what), places, steps=0)

    def _detail(self, what: str) -> tuple[str, ...]:
        rate = self._tokens / max(time.monotonic() - self._started, 1e-9)
        speed = f"{rate:,.0f} tokens/s" if self._tokens else ""
        return f"block {self._index + 1} of {len(self.blocks)}", what, speed
