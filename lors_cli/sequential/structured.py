"""Structured pruning: how small the blocks of a model get, and which of their parts stay."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lors_cli import console
from lors_cli.config.prune import Prune
from lors_cli.errors import request_error
from lors_cli.models.linears import block_linears, find_blocks
from lors_cli.models.reduction import Counts
from lors_cli.models.structure import COLUMNS, PLACES, ROWS, Kept, Sizes, Structure, shrink, sizes
from lors_cli.pruning import STRUCTURED, StructuredOptions, structured
from lors_cli.pruning.rows import StructuredMethod
from lors_cli.pruning.structured import Member
from lors_cli.sequential.gradients import visit_backwards


@dataclass(frozen=True)
class Reduction:
    """Which of how many blocks get smaller, how many parts each of them keeps, and the parameters that this leaves."""

    sizes: Sizes
    middle: range
    blocks: int
    groups: int
    channels: int
    counts: Counts

    @classmethod
    def of(cls, options: StructuredOptions, skeleton: PreTrainedModel, sizes: Sizes) -> "Reduction":
        """What the options do to a (skeleton) model with blocks of these sizes.

        Raises:
            RequestError: no block is to be pruned, or a uniform ratio leaves no part.

        """
        prefix, blocks = find_blocks(skeleton)
        count = len(blocks)
        middle = range(options.keep_first, count - options.keep_last)
        if not middle:
            got = f"{options.keep_first} and {options.keep_last} of {count} blocks kept whole"
            remedy = "set prune.keep_first and prune.keep_last to fewer"
            raise request_error("prune.keep_first", "some blocks between the kept ones", got, remedy)
        ratio = options.ratio
        if options.uniform:
            middle, ratio = range(count), ratio * len(middle) / count
            _check_left(ratio, options.ratio, sizes)
        groups = structured.groups_left(sizes.groups, ratio)
        channels = structured.channels_left(sizes.channels, ratio)
        whole = Counts.of(skeleton)
        sample = Structure(sizes, [Kept(list(range(groups)), list(range(channels)))], "", 0)
        gone = {
            name: (parameter.numel() - sample.cut(f"{prefix}.0.{name}", parameter).numel()) * len(middle)
            for name, parameter in blocks[middle.start].named_parameters()
        }
        weights = sum(gone[f"{name}.weight"] for name in block_linears(blocks[middle.start]))
        counts = Counts(whole.before, whole.before - sum(gone.values()), whole.in_linears - weights)
        return cls(sizes, middle, count, groups, channels, counts)

    def structure(self) -> Structure:
        """A structure of the right sizes, whichever parts will be kept."""
        smaller = Kept(list(range(self.groups)), list(range(self.channels)))
        blocks = [smaller if index in self.middle else kept for index, kept in enumerate(self.whole())]
        return Structure(self.sizes, blocks, original="", parameters=self.counts.before)

    def whole(self) -> list[Kept]:
        """What each block of the original has."""
        return [Kept(list(range(self.sizes.groups)), list(range(self.sizes.channels))) for _ in range(self.blocks)]

    def summary(self) -> str:
        """The reduction in one line of text."""
        return (
            f"{self.counts.summary()}; {len(self.middle)} of {self.blocks} blocks keep {self.groups} attention groups"
            f" and {self.channels} MLP channels"
        )


def _check_left(ratio: float, asked: float, sizes: Sizes) -> None:
    """Refuse a uniform `ratio`, of what was `asked`, by which a block would have no attention group or no MLP channel.

    Raises:
        RequestError: it would.

    """
    for what, count in (("attention group", sizes.groups), ("MLP channel", sizes.channels)):
        if not structured.leaves_a_part(count, ratio):
            most = math.floor((1 - 1 / count) * asked / ratio * 1000) / 1000
            remedy = f"write prune.ratio: {most:g} or less, or uniform: false"
            expected = f"a ratio that leaves each block at least one of {count} {what}s, with uniform: true"
            raise request_error("prune.ratio", expected, f"{asked:g}, {ratio:g} of each block", remedy)


def choose(
    method: StructuredMethod,
    options: StructuredOptions,
    reduction: Reduction,
    generator: torch.Generator,
    model: PreTrainedModel | None,
    tokens: Tensor | None,
) -> list[Kept]:
    """What each block keeps.

    Args:
        method: chooses.
        options: of the method.
        reduction: how much is kept.
        generator: for a method that draws.
        model: frozen, in memory, for a method that needs gradients; otherwise None.
        tokens: the text of the gradients, token ids (windows, length).

    """
    kept = reduction.whole()

    def keep(index: int, groups: Sequence[Member], channels: Sequence[Member]) -> None:
        kept[index] = Kept(
            method.keep(groups, reduction.sizes.groups, reduction.groups, generator, options),
            method.keep(channels, reduction.sizes.channels, reduction.channels, generator, options),
        )

    def visit(index: int, block: nn.Module) -> None:
        if index in reduction.middle:
            keep(index, *_members(block))

    if model is None or tokens is None:
        for index in reduction.middle:
            keep(index, [], [])
    else:
        with console.progress("prune: gradients, block", len(tokens) * reduction.blocks) as advance:
            visit_backwards(model, tokens, visit, advance)
    return kept


def _members(block: nn.Module) -> tuple[list[Member], list[Member]]:
    """What the attention groups, and what the MLP channels, of a block with gradients consist of."""
    groups: list[Member] = []
    channels: list[Member] = []
    for place in PLACES:
        weight: Any = block.get_submodule(place).weight
        name = place.rsplit(".", 1)[-1]
        member = Member(weight.detach(), weight.grad, by_rows=name in ROWS)
        (channels if (ROWS.get(name) or COLUMNS[name]) == "channels" else groups).append(member)
    return groups, channels


def options_for(section: Prune) -> StructuredOptions:
    """The values that a section of the config has for the options of its structured method."""
    options = section.values(STRUCTURED[section.method].options)
    if not isinstance(options, StructuredOptions):
        raise TypeError(f"the options of {section.method} are not those of a structured method")
    return options


def shrink_as_planned(section: Prune, skeleton: PreTrainedModel) -> None:
    """Give a (skeleton) original the shapes that `section` will leave.

    Raises:
        RequestError: its blocks are not of Llama's form, or no block is to be pruned.

    """
    reduction = Reduction.of(options_for(section), skeleton, sizes(skeleton, "model"))
    shrink(skeleton, reduction.structure())
