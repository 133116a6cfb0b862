"""``lors prune`` with a structured method: whole attention groups and MLP channels of the middle blocks go.

The files are read and written one tensor at a time; only structured_taylor, which needs gradients, has the model in
memory.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lors_cli import console, processes, pruning
from lors_cli.artifacts import digest, tensors
from lors_cli.config.prune import Prune
from lors_cli.config.schema import Config
from lors_cli.data import calibration as data
from lors_cli.errors import request_error
from lors_cli.models import linears, load, measure, source, structure
from lors_cli.models.structure import COLUMNS, PLACES, ROWS, Kept, Sizes, Structure
from lors_cli.pruning import structured
from lors_cli.run import request
from lors_cli.run.graph import Graph
from lors_cli.run.job import Job
from lors_cli.sequential.backward import visit_backwards
from lors_cli.stages import common

log = logging.getLogger(__name__)


def prepare(config: Config, section: Prune, graph: Graph) -> Job:
    """Check the request against the model's shapes; read no weights.

    Raises:
        RequestError: it cannot be carried out.

    """
    key = "prune.input" if section.input else "model"
    directory = graph.input("prune", "model").path
    skeleton = load.skeleton(directory, config.dtype, trust_remote_code=config.trust_remote_code)
    linears.refuse_experts(skeleton, key)
    if structure.read(directory):
        raise request_error(key, "a whole model", f"{directory}, which is smaller already", "prune the original")
    if source.is_complete(directory):
        load.open_weights(directory, skeleton, key)
    sizes = structure.sizes(skeleton, key)
    plan = _Plan.of(section, skeleton, sizes)
    tokens = None
    if pruning.METHODS[section.method].calibrated and section.calibration:
        data.check(section.calibration.dataset.source("prune.calibration.dataset"), section.calibration.dataset.format)
        tokens = common.calibration_tokens(config, section.calibration, directory, skeleton)
    device = load.pick_device(config.device)

    def work(partial: Path) -> dict[str, Any]:
        if processes.rank() > 0:
            return {}  # there is too little to share
        kept = _choose(config, section, sizes, plan, directory, tokens, device)
        found = Structure(sizes, kept, job.digests["model"], plan.before)
        _write(directory, partial, found, skeleton.dtype)
        facts = measure.model(partial, trust_remote_code=config.trust_remote_code)
        log.info("prune: %s", plan.summary())
        measured = {key: facts[key] for key in ("sparsity", "pattern", "modules")}
        return {**measured, "parameters": {"before": plan.before, "after": plan.after}, "reduction": plan.reduction}

    calibration = section.calibration
    job = Job(
        stage="prune",
        inputs={"model": directory},
        settings={
            **request.settings(config, section),
            "calibration_source": calibration.dataset.source("").identity() if calibration else None,
            "calibration_tokens": digest.of_value(tokens.tolist()) if tokens is not None else None,
        },
        config=config,
        work=work,
        plan=[f"{section.method}: {plan.summary()}"],
    )
    return job


def shrink_as_planned(section: Prune, skeleton: PreTrainedModel) -> None:
    """Give a (skeleton) original the shapes that `section` will leave; errors as in `prepare`."""
    sizes = structure.sizes(skeleton, "model")
    structure.shrink(skeleton, _Plan.of(section, skeleton, sizes).structure(sizes))


@dataclass(frozen=True)
class _Plan:
    """Which of how many blocks are pruned, how many parts each keeps, and the parameters before and after."""

    middle: range
    blocks: int
    groups: int
    channels: int
    before: int
    after: int

    @classmethod
    def of(cls, section: Prune, skeleton: PreTrainedModel, sizes: Sizes) -> "_Plan":
        """The plan of a section for a (skeleton) model.

        Raises:
            RequestError: no block is to be pruned.

        """
        ratio = section.ratio or 0.0
        prefix, blocks = linears.find_blocks(skeleton)
        count = len(blocks)
        middle = range(section.keep_first, count - section.keep_last)
        if not middle:
            got = f"{section.keep_first} and {section.keep_last} of {count} blocks kept whole"
            raise request_error("prune.keep_first", "some blocks between the kept ones", got, "keep fewer")
        groups = structured.groups_left(sizes.groups, ratio)
        channels = structured.channels_left(sizes.channels, ratio)
        before = sum(parameter.numel() for parameter in skeleton.parameters())
        sample = Structure(sizes, [Kept(list(range(groups)), list(range(channels)))], "", 0)
        gone = sum(
            parameter.numel() - sample.cut(f"{prefix}.0.{name}", parameter).numel()
            for name, parameter in blocks[middle.start].named_parameters()
        )
        return cls(middle, count, groups, channels, before, before - gone * len(middle))

    def structure(self, sizes: Sizes) -> Structure:
        """A structure of the planned sizes; which parts are kept is not known yet."""
        whole = Kept(list(range(sizes.groups)), list(range(sizes.channels)))
        smaller = Kept(whole.groups[: self.groups], whole.channels[: self.channels])
        blocks = [smaller if index in self.middle else whole for index in range(self.blocks)]
        return Structure(sizes, blocks, original="", parameters=self.before)

    @property
    def reduction(self) -> float:
        """The parameters of the original for each one that is left."""
        return self.before / self.after

    def summary(self) -> str:
        """In a line."""
        return (
            f"{_short(self.before)} -> {_short(self.after)} parameters ({self.reduction:.2f}x, exactly {self.after:,});"
            f" {len(self.middle)} of {self.blocks} blocks keep {self.groups} attention groups and {self.channels} MLP"
            " channels"
        )


def _short(count: int) -> str:
    return f"{count / 1e9:.2f}B" if count >= 1e9 else f"{count / 1e6:.2f}M"


def _choose(
    config: Config,
    section: Prune,
    sizes: Sizes,
    plan: _Plan,
    directory: Path,
    tokens: Tensor | None,
    device: torch.device,
) -> list[Kept]:
    """What each block keeps."""
    kept = [Kept(list(range(sizes.groups)), list(range(sizes.channels))) for _ in range(plan.blocks)]
    if tokens is None:
        generator = torch.Generator().manual_seed(config.seed)
        for index in plan.middle:
            kept[index] = Kept(
                structured.random_kept(sizes.groups, plan.groups, generator),
                structured.random_kept(sizes.channels, plan.channels, generator),
            )
        return kept
    model = load.load_model(directory, config.dtype, device, trust_remote_code=config.trust_remote_code)
    model.requires_grad_(False)

    def visit(index: int, block: torch.nn.Module) -> None:
        if index in plan.middle:
            groups, channels = _importances(block, sizes, section)
            kept[index] = Kept(structured.best_kept(groups, plan.groups), structured.best_kept(channels, plan.channels))

    with console.progress("prune: gradients, block", len(tokens) * plan.blocks) as advance:
        visit_backwards(model, tokens, visit, advance)
    return kept


def _importances(block: torch.nn.Module, sizes: Sizes, section: Prune) -> tuple[Tensor, Tensor]:
    """Those of the groups and of the channels of a block whose weights have gradients."""
    found: dict[str, dict[str, Tensor]] = {"groups": {}, "channels": {}}
    for place in PLACES:
        weight: Any = block.get_submodule(place).weight
        name = place.rsplit(".", 1)[-1]
        kind = "channels" if (ROWS.get(name) or COLUMNS[name]) == "channels" else "groups"
        parts = sizes.channels if kind == "channels" else sizes.groups
        found[kind][place] = structured.part_importance(
            weight.detach(), weight.grad, parts, by_rows=name in ROWS, form=section.importance
        )
    groups, channels = (structured.importance(parts, section.aggregation) for parts in found.values())
    return groups, channels


def _write(directory: Path, partial: Path, found: Structure, dtype: torch.dtype) -> None:
    """Write what is left of each tensor, in files of the same names."""
    places, total = {}, 0
    shards = tensors.shards(directory)
    for shard in shards:
        with tensors.open_shard(shard) as file:
            content = {
                name: found.cut(name, file.get_tensor(name)).to(dtype)
                for name in file.keys()  # noqa: SIM118 - safe_open is no mapping
            }
        tensors.write(content, partial / shard.name)
        places.update(dict.fromkeys(content, shard.name))
        total += sum(tensor.nbytes for tensor in content.values())
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (partial / tensors.INDEX).write_text(json.dumps(index, indent=2) + "\n")
    load.copy_config(directory, partial, dtype)
    tensors.copy_companions(directory, partial)
    found.write(partial)
