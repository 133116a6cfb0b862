"""The pruning engine: what happens to each block of a model."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lors_cli import processes
from lors_cli.errors import LorsError
from lors_cli.models import linears, sizes
from lors_cli.models.weights import Weights
from lors_cli.quantization.grid import Grid
from lors_cli.quantization.stored import Quantized
from lors_cli.sequential import fold, linear_by_linear, prune_linears, tune
from lors_cli.sequential.gather import Input
from lors_cli.sequential.loop import BlockLoop
from lors_cli.sequential.prune_linears import Facts
from lors_cli.sequential.recipe import Recipe
from lors_cli.sequential.record import Record
from lors_cli.sequential.rewrite import Rewriting
from lors_cli.sequential.targets import Targets

log = logging.getLogger(__name__)


@dataclass
class Pruning(Rewriting):
    """Prunes the model of `skeleton` and `checkpoint` by a recipe, on the calibration `tokens`, (windows, length)."""

    skeleton: PreTrainedModel
    checkpoint: Weights
    recipe: Recipe
    tokens: Tensor | None
    device: torch.device
    placement: str
    seed: int = 0

    phase = "prune"
    targets: Targets | None = field(init=False, default=None)
    _rounded: dict[str, Quantized] = field(init=False, default_factory=dict)  # of the block at hand

    def _take_blocks(self, record: Record) -> None:
        if self.recipe.profile:
            self.loop.run("profile", self._measure, passes=1)
            shares = [float(facts["outliers"]) for facts in record.done("profile")]
            self.recipe = self.recipe.with_profile(shares, self.blocks.prefix)
        if self.recipe.section.sequential == "linear" and self.recipe.statistics:
            # as a rule a block has four inputs that linears share
            visit, passes = self._prune_linear_by_linear, 5
        else:
            visit, passes = self._prune, 2
        if tuning := self.recipe.section.tune_blocks:
            windows = len(self.tokens) if self.tokens is not None else 1
            passes += 2 + -(-tuning.steps * tuning.batch_size // windows)
        self.loop.run("prune", visit, passes, self._flush, self.targets)

    def _loop(self, scratch: Path, dtype: torch.dtype, record: Record) -> BlockLoop:
        self.targets = None
        if self.tokens is not None and (tuning := self.recipe.section.tune_blocks):
            ours, dense = range(len(self.tokens))[processes.rank() :: processes.count()], tuning.target == "dense"
            self.targets = Targets(self._states(scratch, ours, dtype, "targets", durable=dense))
        return super()._loop(scratch, dtype, record)

    def _targeted(self, index: int, block: nn.Module) -> dict[str, nn.Linear]:
        """The linears of the block that are to be pruned."""
        return self._linears(index, block, self.recipe.targets)

    def _measure(self, index: int, block: nn.Module) -> dict[str, Any]:
        """A visit that changes nothing: what a profile measures in the block."""
        profile, by_name = self.recipe.profile, linears.block_linears(block)
        if not profile:
            raise ValueError("no profile is asked for")
        inputs = self.loop.gather_and_advance(by_name, block, [str(profile.statistic)])
        weights, statistics = [], []
        for shared in inputs:
            weights += [by_name[name].weight for name in shared.linears]
            statistics += [shared.statistics[str(profile.statistic)].value()] * len(shared.linears)
        return {"outliers": profile.share(weights, statistics, self.recipe.options(profile))}

    def _prune(self, index: int, block: nn.Module) -> dict[str, Any]:
        """A visit that gathers the statistics of the whole block, prunes it, and runs it again."""
        targeted, prefix = self._targeted(index, block), f"{self.blocks.prefix}.{index}"
        if self.recipe.statistics and targeted:
            inputs = self.loop.gather(targeted, block, self.recipe.statistics, aim=True)
        else:
            self.loop.aim(block)
            inputs = [Input([name], {}, torch.empty(0, 0)) for name in targeted]
        if self.recipe.permutes:
            self._permute(prefix, block, inputs)
        facts = self._solve(prefix, targeted, inputs)
        tuned = targeted if self.recipe.section.tune_blocks else {}
        if self.recipe.reads_text and not tuned:
            self.loop.advance(block)
        return self._finish(index, block, facts, tuned)

    @torch.no_grad()
    def _permute(self, prefix: str, block: nn.Module, inputs: list[Input]) -> None:
        """Reorder inputs, and check that the block still computes the same."""
        before = self.loop.sample(block).float()
        width = sizes.head_width(self.skeleton.config.get_text_config())
        names = fold.permute(linears.block_linears(block), prefix, inputs, self.recipe, width)
        log.debug("%s: reordered the inputs of %s", prefix, ", ".join(names) or "none")
        change = float((self.loop.sample(block).float() - before).norm() / before.norm())
        if change > fold.tolerance(self.blocks.dtype):
            raise LorsError(
                f"{prefix}: reordering inputs changes what the block computes, by {change:.2g} of its output: something"
                " between its linears tells channels apart; set prune.permute: false"
            )

    def _prune_linear_by_linear(self, index: int, block: nn.Module) -> dict[str, Any]:
        """A visit in which each linear sees the pruned ones before it."""
        targeted, prefix = self._targeted(index, block), f"{self.blocks.prefix}.{index}"
        facts: Facts = {}

        def prune_input(shared: Input) -> None:
            facts.update(self._solve(prefix, targeted, [shared]))

        self.loop.aim(block)
        tuned = targeted if self.recipe.section.tune_blocks else {}
        linear_by_linear.run(targeted, self.recipe.statistics, self.loop, block, prune_input, advance=not tuned)
        return self._finish(index, block, facts, tuned)

    @property
    def grids(self) -> dict[str, Grid]:
        """The grid of each pruned linear, if they are rounded in the same solve."""
        return dict.fromkeys(self.recipe.targets, self.recipe.grid) if self.recipe.grid else {}

    def _finish(self, index: int, block: nn.Module, facts: Facts, tuned: dict[str, nn.Linear]) -> dict[str, Any]:
        """Tune the block, if linears of it are to be `tuned`, and write it."""
        tuning, options = None, self.recipe.section.tune_blocks
        if options and tuned:
            self.loop.say("tuning")
            tuning = tune.tune(block, tuned, self.loop, options, self.seed + (index << 32))
            tune.report(f"{self.blocks.prefix}.{index}", tuning)
        self._write(index, block, self._rounded)
        self._rounded.clear()
        return {"linears": facts, "tuning": tuning}

    def _solve(self, prefix: str, targeted: dict[str, nn.Linear], inputs: list[Input]) -> Facts:
        self.loop.say("pruning", (name for shared in inputs for name in shared.linears))
        facts, rounded = prune_linears.prune(targeted, prefix, inputs, self.recipe)
        self._rounded |= rounded
        for name, fact in facts.items():
            error = "not measured" if fact["error"] is None else f"{fact['error']:.6f}"
            damping = "" if fact["damping"] is None else f", damping {fact['damping']:g}"
            seconds, tokens = fact["seconds"], fact["tokens"]
            if update := fact["update"]:
                damping += f", update {update['error_before']:.6f} -> {update['error_after']:.6f}"
            log.debug(
                "%s: sparsity %.6f, error %s%s, %d tokens, %.2f s",
                name,
                fact["sparsity"],
                error,
                damping,
                tokens,
                seconds,
            )
        return facts
