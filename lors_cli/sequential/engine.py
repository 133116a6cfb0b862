"""The pruning engine: what happens to each block on the walk through a model, and to the tensors outside the blocks."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lors_cli import processes
from lors_cli.artifacts import publish, tensors
from lors_cli.artifacts.shard_writer import ShardWriter
from lors_cli.errors import LorsError
from lors_cli.models import linears, load
from lors_cli.sequential import fold, interleave, profile, solve
from lors_cli.sequential.blocks import Blocks
from lors_cli.sequential.gather import Input
from lors_cli.sequential.recipe import PROFILE_STATISTIC, Recipe
from lors_cli.sequential.states import States
from lors_cli.sequential.walk import Record, Walk
from lors_cli.sparsity import mask

log = logging.getLogger(__name__)


@dataclass
class Pruning:
    """Prunes the model of `skeleton` and `checkpoint` by a recipe, on the calibration `tokens`, (windows, length)."""

    skeleton: PreTrainedModel
    checkpoint: tensors.TensorFiles
    recipe: Recipe
    tokens: Tensor | None
    device: torch.device
    placement: str

    def run(self, partial: Path) -> Record:
        """Write the pruned weights into `partial`, or go on with what an interrupted run left there.

        Returns:
            what the blocks of each phase came to.

        """
        layout = load.layout(self.skeleton)
        scratch = publish.scratch(partial)
        dtype = next(iter(layout.values())).dtype
        self.blocks = Blocks(self.skeleton, self.checkpoint, dtype, self.device)
        record = Record(scratch)
        going_on = bool(record.done("prune"))
        self.writer = ShardWriter(partial, layout, going_on=going_on) if processes.rank() == 0 else None
        self.walk = self._walk(scratch, dtype, record)
        try:
            if self.writer:  # first, because what is wrong with them should not come out last
                self._copy_others(layout, self.writer)
            self._walk_through(record)
        except BaseException:
            if record.nothing_done():
                self.walk.forget()
            raise
        return record

    def _walk_through(self, record: Record) -> None:
        if self.recipe.section.profile:
            self.walk.run("profile", self._outliers, passes=1)
            self.recipe = self.recipe.with_profile(record.done("profile"), self.blocks.prefix)
        by_linear = self.recipe.section.sequential == "linear" and bool(self.recipe.statistics)
        self.walk.run(
            "prune", self._prune_linear_by_linear if by_linear else self._prune, 1 if by_linear else 2, self._flush
        )

    def _walk(self, scratch: Path, dtype: torch.dtype, record: Record) -> Walk:
        if self.tokens is None:
            return Walk(self.blocks, {}, None, self.placement, record)
        ours = range(len(self.tokens))[processes.rank() :: processes.count()]
        hidden = self.skeleton.config.get_text_config().hidden_size
        states = States(scratch, ours, (self.tokens.shape[1], hidden), dtype, self.device)
        # one window at a time, as the published codes do: a batch would round otherwise
        windows = {window: self.tokens[window : window + 1].to(self.device) for window in ours}
        return Walk(self.blocks, windows, states, self.placement, record)

    def _targeted(self, index: int, block: nn.Module) -> dict[str, nn.Linear]:
        """The linears of the block that are to be pruned."""
        prefix = f"{self.blocks.prefix}.{index}"
        found = linears.block_linears(block)
        return {name: linear for name, linear in found.items() if f"{prefix}.{name}" in self.recipe.targets}

    def _outliers(self, index: int, block: nn.Module) -> dict[str, Any]:
        """A visit that changes nothing: the share of outliers among the scores of the block."""
        found = linears.block_linears(block)
        inputs = self.walk.gather_and_advance(found, block, [PROFILE_STATISTIC])
        return profile.outliers(found, inputs, self.recipe.section.profile_outlier)

    def _prune(self, index: int, block: nn.Module) -> solve.Facts:
        """A visit that gathers the statistics of the whole block, prunes it, and runs it again."""
        targeted, prefix = self._targeted(index, block), f"{self.blocks.prefix}.{index}"
        if self.recipe.statistics and targeted:
            inputs = self.walk.gather(targeted, block, self.recipe.statistics)
        else:
            inputs = [Input([name], {}, torch.empty(0, 0)) for name in targeted]
        _check_reached(prefix, targeted, inputs)
        if self.recipe.section.permute:
            self._permute(prefix, block, inputs)
        facts = self._solve(prefix, targeted, inputs)
        if self.recipe.statistics:
            self.walk.advance(block)
        self._write(index, block)
        return facts

    @torch.no_grad()
    def _permute(self, prefix: str, block: nn.Module, inputs: list[Input]) -> None:
        """Reorder inputs, and check that the block still computes the same."""
        before = self.walk.sample(block).float()
        width = load.head_width(self.skeleton)
        names = solve.permute(linears.block_linears(block), prefix, inputs, self.recipe, width)
        log.debug("%s: reordered the inputs of %s", prefix, ", ".join(names) or "none")
        change = float((self.walk.sample(block).float() - before).norm() / before.norm())
        if change > fold.tolerance(self.blocks.dtype):
            raise LorsError(
                f"{prefix}: reordering inputs changes what the block computes, by {change:.2g} of its output: something"
                " between its linears tells channels apart; set prune.permute: false"
            )

    def _prune_linear_by_linear(self, index: int, block: nn.Module) -> solve.Facts:
        """A visit in which each linear sees the pruned ones before it; one pass over the windows does."""
        targeted, prefix = self._targeted(index, block), f"{self.blocks.prefix}.{index}"
        facts: solve.Facts = {}

        def prune_input(shared: Input) -> None:
            facts.update(self._solve(prefix, targeted, [shared]))

        inputs = self.walk.gather(targeted, block, [], windows=list(self.walk.windows)[:1])
        _check_reached(prefix, targeted, inputs)
        interleave.run(targeted, inputs, self.recipe.statistics, self.walk, block, prune_input)
        self._write(index, block)
        return facts

    def _solve(self, prefix: str, targeted: dict[str, nn.Linear], inputs: list[Input]) -> solve.Facts:
        self.walk.say(f"pruning {', '.join(name for shared in inputs for name in shared.linears)}")
        facts = solve.prune(targeted, prefix, inputs, self.recipe)
        for name, fact in facts.items():
            error = "not measured" if fact["error"] is None else f"{fact['error']:.6f}"
            damping = "" if fact["damping"] is None else f", damping {fact['damping']:g}"
            seconds, tokens = fact["seconds"], fact["tokens"]
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

    def _write(self, index: int, block: nn.Module) -> None:
        if self.writer:
            for name, tensor in block.state_dict().items():
                self.writer.write(f"{self.blocks.prefix}.{index}.{name}", tensor)

    def _flush(self, index: int) -> None:
        if self.writer:
            self.writer.flush(f"{self.blocks.prefix}.{index}.")

    def _copy_others(self, layout: dict[str, Tensor], writer: ShardWriter) -> None:
        """Copy what no block holds: embeddings, the last norm, the head."""
        for name, planned in layout.items():
            if not name.startswith(f"{self.blocks.prefix}."):
                tensor = self.checkpoint.tensor(name).to(planned.dtype)
                if not mask.finite(tensor):
                    raise LorsError(f"{name}: NaN or infinity in its weights; check the model")
                writer.write(name, tensor)


def _check_reached(prefix: str, targeted: dict[str, nn.Linear], inputs: list[Input]) -> None:
    missing = targeted.keys() - {name for shared in inputs for name in shared.linears}
    if missing:
        raise LorsError(f"{prefix}.{min(missing)}: no calibration token reached it, so nothing tells what to prune")
