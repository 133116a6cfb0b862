"""``lors prune``: dense model -> <output_dir>/pruned, one decoder block in memory at a time.

Each block sees the states that the pruned blocks before it produce: the statistics of its linears are gathered on
these, its linears are pruned, and it is run again for the states of the next.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lors_cli import console, processes
from lors_cli.artifacts import digest, publish, tensors
from lors_cli.artifacts.shard_writer import ShardWriter
from lors_cli.blockwise import estimate, fold, interleave, profile, solve
from lors_cli.blockwise.gather import Input
from lors_cli.blockwise.recipe import PROFILE_STATISTIC, Recipe, build
from lors_cli.blockwise.states import States
from lors_cli.blockwise.walk import Record, Walk
from lors_cli.config.prune import Calibration
from lors_cli.config.schema import Config
from lors_cli.data import calibration as data
from lors_cli.errors import LorsError, request_error
from lors_cli.models import linears, load, source
from lors_cli.models.blocks import Blocks
from lors_cli.sparsity import mask
from lors_cli.stages import common, inspect
from lors_cli.stages.job import Job

log = logging.getLogger(__name__)

VARIANT_SLACK = 0.0011  # of wanda's variant, whose bisection stops within 0.001


def prepare(config: Config, earlier: list[str]) -> Job:
    """Check the request against the model's shapes, the calibration text and the machine; read no weights.

    Raises:
        RequestError: it cannot be carried out.

    """
    section = common.section(config, "prune", config.prune)
    key = "prune.input" if section.input else "model"
    calibration = section.calibration
    if calibration:
        data.check(calibration.dataset.source("prune.calibration.dataset"), calibration.dataset.format)
    device = load.pick_device(config.device, processes.local_rank())
    directory = source.resolve(section.input or config.model, key)
    skeleton = load.skeleton(directory, config.dtype, trust_remote_code=config.trust_remote_code)
    linears.refuse_experts(skeleton, key)
    if source.is_complete(directory):
        load.open_checkpoint(directory, skeleton, key)
    mask_path = Path(section.mask) if section.mask else None
    recipe = build(section, linears.all_linears(skeleton), common.mask_checkpoint(mask_path) if mask_path else None)
    if not (recipe.statistics or section.profile):
        calibration = None
    tokens = _calibration_tokens(config, calibration, directory, skeleton) if calibration else None
    output = Path(config.output_dir) / "pruned"
    partial = publish.partial_directory(output)
    shape = (len(tokens), tokens.shape[1]) if tokens is not None else None
    need = estimate.estimate(skeleton, recipe, shape, device)
    estimate.check(need, device, partial)

    def work(partial: Path) -> dict[str, Any]:
        for line in need.lines():
            log.info("prune: %s", line)
        checkpoint = load.open_checkpoint(directory, skeleton, key)
        return _Pruning(config, directory, skeleton, checkpoint, recipe, tokens, device, need.placement).run(partial)

    return Job(
        stage="prune",
        output=output,
        inputs={"model": directory} | ({"mask": mask_path} if mask_path else {}),
        settings={
            **common.settings(config, section),
            "calibration_source": calibration.dataset.source("").identity() if calibration else None,
            "calibration_tokens": digest.of_value(tokens.tolist()) if tokens is not None else None,
        },
        config=config,
        work=work,
        resumable=True,
        plan=[f"{section.method} to {section.sparsity or section.mask}, {len(recipe.targets)} linears", *need.lines()],
        report=lambda: console.result(str(output)),
    )


def _calibration_tokens(config: Config, calibration: Calibration, directory: Path, skeleton: PreTrainedModel) -> Tensor:
    load.warn_of_length(skeleton, calibration.sequence_length, "prune.calibration.sequence_length")
    tokenizer = load.load_tokenizer(directory, trust_remote_code=config.trust_remote_code)
    tokens = data.calibration_windows(
        calibration.dataset.source("prune.calibration.dataset"),
        calibration.dataset.format,
        tokenizer,
        calibration.sequence_length,
        calibration.samples,
        sampling=calibration.sampling,
        seed=config.seed,
    )
    if len(tokens) < processes.count():
        wanted = f"at least {processes.count()}, a window for every process"
        raise request_error("prune.calibration.samples", wanted, len(tokens), "start fewer processes")
    return tokens


@dataclass
class _Pruning:
    """The work of one job."""

    config: Config
    directory: Path
    skeleton: PreTrainedModel
    checkpoint: tensors.Checkpoint
    recipe: Recipe
    tokens: Tensor | None
    device: torch.device
    placement: str

    def run(self, partial: Path) -> dict[str, Any]:
        """Prune into `partial`, or go on with what an interrupted run left there."""
        layout = load.layout(self.skeleton)
        self.writer = ShardWriter(partial, layout) if processes.rank() == 0 else None
        scratch = publish.scratch(partial)
        dtype = next(iter(layout.values())).dtype
        self.blocks = Blocks(self.skeleton, self.checkpoint, dtype, self.device)
        record = Record(scratch)
        self.walk = self._walk(scratch, dtype, record)
        try:
            if self.writer:  # first, because what is wrong with them should not come out last
                self._copy_others(layout, self.writer)
            self._walk_through(record)
        except BaseException:
            if record.nothing_done():
                self.walk.forget()
            raise
        facts: dict[str, Any] = {}
        if self.writer:
            load.copy_config(self.directory, partial, dtype)
            tensors.copy_companions(self.directory, partial)
            made = {name: fact for block in record.done("prune") for name, fact in block.items()}
            seen = {name: fact.pop("tokens") for name, fact in made.items()}
            facts = self._calibration_facts(seen) | _verify(partial, self.recipe, made, self.config.trust_remote_code)
        return {**facts, "profile": record.phases.get("profile")}

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
        return self._written(index, block, facts)

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
        return self._written(index, block, facts)

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

    def _written(self, index: int, block: nn.Module, facts: solve.Facts) -> solve.Facts:
        if self.writer:
            for name, tensor in block.state_dict().items():
                self.writer.write(f"{self.blocks.prefix}.{index}.{name}", tensor)
        return facts

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

    def _calibration_facts(self, seen: dict[str, int]) -> dict[str, Any]:
        if self.tokens is None:
            return {}
        count, length = self.tokens.shape
        facts = {"windows": count, "tokens": count * length, "token_digest": digest.of_value(self.tokens.tolist())}
        return {"calibration": {**facts, "states": self.placement, "tokens_per_linear": seen}}


def _check_reached(prefix: str, targeted: dict[str, nn.Linear], inputs: list[Input]) -> None:
    missing = targeted.keys() - {name for shared in inputs for name in shared.linears}
    if missing:
        raise LorsError(f"{prefix}.{min(missing)}: no calibration token reached it, so nothing tells what to prune")


def _verify(directory: Path, recipe: Recipe, made: solve.Facts, trust_remote_code: bool) -> dict[str, Any]:
    """Measure the saved files, print what the linears got, and check it against what was asked.

    Raises:
        LorsError: the files do not hold the pattern.

    """
    slack = VARIANT_SLACK if recipe.section.variant else 0.0

    def check(name: str, weight: Tensor) -> None:
        pattern = recipe.targets.get(name)
        if pattern and not mask.holds(weight, pattern, slack):
            raise LorsError(f"{name}: the saved weights do not hold {pattern}")

    found = inspect.inspect_model(directory, check, trust_remote_code=trust_remote_code)
    for name, facts in found["modules"].items():
        if facts["negative_zeros"] or not facts["finite"]:
            raise LorsError(f"{name}: the saved weights hold -0.0, NaN or infinity: {facts}")
        pattern = recipe.targets.get(name)
        facts |= {"asked": str(pattern) if pattern else None, **made.get(name, {})}
    common.log_modules(found)
    if len({str(pattern) for pattern in recipe.targets.values()}) > 1 or len(recipe.targets) < len(found["modules"]):
        log.info("%s", common.block_table(found["modules"]))
    log.info(
        "prune: the files keep their size; zeros are stored like other numbers, and dense kernels run at dense speed"
    )
    return {key: found[key] for key in ("sparsity", "pattern", "modules")} | {
        "asked": recipe.section.model_dump(mode="json")["sparsity"]
    }
