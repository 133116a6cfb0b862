"""The quantising engine: what happens to each block of a model.

Each block sees the states that the quantised blocks before it leave: the statistics of its linears are gathered on
these, its linears are rounded, and it is run again for the states of the next.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lors_cli import processes
from lors_cli.errors import LorsError
from lors_cli.models.weights import Weights
from lors_cli.options import Options
from lors_cli.quantization import Method
from lors_cli.quantization.grid import Grid, Scales
from lors_cli.quantization.stored import Quantized
from lors_cli.sequential.gather import Input
from lors_cli.sequential.prune_linears import Facts, relative_error, sent
from lors_cli.sequential.record import Record
from lors_cli.sequential.rewrite import Rewriting
from lors_cli.sparsity import mask

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rounding:
    """How weights are rounded; `frozen` gives the scales of a linear, by its full name, if these are not fitted."""

    method: Method
    options: Options
    grid: Grid
    frozen: Callable[[str], Scales] | None = None

    def scales(self, names: list[str]) -> Scales | None:
        """The frozen scales of these linears, one below the other."""
        if self.frozen is None:
            return None
        scale, zero_point = zip(*map(self.frozen, names), strict=True)
        return Scales(torch.cat(scale), None if zero_point[0] is None else torch.cat(zero_point))


@dataclass
class Quantizing(Rewriting):
    """Quantises the `targets`, full names of linears, of the model of `skeleton` and `checkpoint`."""

    skeleton: PreTrainedModel
    checkpoint: Weights
    rounding: Rounding
    targets: list[str]
    tokens: Tensor | None
    device: torch.device
    placement: str

    phase = "quantize"

    @property
    def grids(self) -> dict[str, Grid]:
        """The grid of each target."""
        return dict.fromkeys(self.targets, self.rounding.grid)

    def _take_blocks(self, record: Record) -> None:
        self.loop.run(self.phase, self._quantize, 2, self._flush)

    def _quantize(self, index: int, block: nn.Module) -> dict[str, Any]:
        """A visit that gathers the statistics of the whole block, rounds its linears, and runs it again."""
        targeted, prefix = self._linears(index, block, set(self.targets)), f"{self.blocks.prefix}.{index}"
        if self.tokens is not None and targeted:
            inputs = self.loop.gather(targeted, block, [str(self.rounding.method.statistic)])
        else:
            inputs = [Input([name], {}, torch.empty(0, 0)) for name in targeted]
        self.loop.say("rounding", targeted)
        quantized, facts = quantize(targeted, prefix, inputs, self.rounding)
        if self.tokens is not None:
            self.loop.advance(block)
        self._write(index, block, quantized)
        return {"linears": facts}


@torch.no_grad()
def quantize(
    linears: dict[str, nn.Linear], prefix: str, inputs: list[Input], rounding: Rounding
) -> tuple[dict[str, Quantized], Facts]:
    """Quantise `linears` (by their name in the block `prefix`); their weights become what the codes stand for.

    Each input's statistics are freed once used. Where several processes work together, each solves for some of the
    inputs and sends the codes to the others.

    Returns:
        the quantised weights, and what happened to each linear, by their full names.

    Raises:
        LorsError: a statistic is not finite, or a solve failed; the message names the linear.

    """
    made: dict[str, Quantized] = {}
    facts: Facts = {}
    for place in range(len(inputs)):
        shared = inputs.pop(0)
        owner, weights = place % processes.count(), {name: linears[name].weight.data for name in shared.linears}
        found: dict[str, Quantized] = {}
        told: dict[str, Any] = {"tokens": shared.tokens}
        if owner == processes.rank():
            started = time.monotonic()
            found, told["damping"] = _solve(weights, prefix, shared, rounding)
            told["seconds"] = round((time.monotonic() - started) / len(weights), 3)
        del shared.statistics
        for name, weight in weights.items():
            full, one = f"{prefix}.{name}", sent(found.get(name), weight, rounding.grid, owner)
            rounded = one.weight(weight.dtype)
            linears[name].weight.data, made[full] = rounded, one
            zeros = {"zeros_before": mask.zeros(weight), "zeros": mask.zeros(rounded)}
            error = relative_error(full, weight, rounded, shared.probe)
            facts[full] = processes.agree({**told, **zeros, "error": error}, owner)
            log.debug("%s: %s", full, ", ".join(f"{key} {value}" for key, value in facts[full].items()))
    return made, facts


def _solve(
    weights: dict[str, Tensor], prefix: str, shared: Input, rounding: Rounding
) -> tuple[dict[str, Quantized], float | None]:
    """Quantise the weights of one input, which are rows of one matrix, by their names; with the damping."""
    statistic, first = None, f"{prefix}.{shared.linears[0]}"
    for gathered in shared.statistics.values():
        if not gathered.finite():
            raise LorsError(f"{first}: NaN or infinity in its calibration inputs; check the model, or its dtype")
        statistic = gathered.value()
    whole = torch.cat(list(weights.values())) if len(weights) > 1 else next(iter(weights.values()))
    try:
        prepared = rounding.method.prepare(statistic, rounding.options)
        scales = rounding.scales([f"{prefix}.{name}" for name in weights])
        solved = rounding.method.quantize(whole, prepared, rounding.grid, whole.dtype, scales)
    except LorsError as error:
        raise LorsError(f"{first}: {error}") from None
    made = dict(zip(weights, solved.split([len(weight) for weight in weights.values()]), strict=True))
    return made, getattr(prepared, "damping", None)
