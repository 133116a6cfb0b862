"""Permuting the inputs of a linear without changing what its block computes.

The outputs of the linears before it are permuted alike: their rows and biases. That is exact only where nothing
between them mixes or distinguishes channels: ``down_proj`` after ``gate_proj`` and ``up_proj`` (an activation and a
product), and ``o_proj`` after ``v_proj`` within each head, the same for all query heads of a key/value head. Names do
not tell that for certain (a norm may lie between), so the caller compares the block's outputs.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from lors_cli import processes
from lors_cli.pruning import permutation
from lors_cli.sequential.gather import Input
from lors_cli.sequential.recipe import Recipe
from lors_cli.sparsity.pattern import Pattern

# The last parts of the names: a linear, and those whose outputs are its inputs channel by channel.
CHANNELS = {"mlp.down_proj": ("mlp.gate_proj", "mlp.up_proj"), "fc2": ("fc1",)}
HEADS = {"self_attn.o_proj": "self_attn.v_proj", "self_attn.out_proj": "self_attn.v_proj"}

# From a score (rows, columns) to the order of its columns.
Order = Callable[[Tensor], Tensor]


@torch.no_grad()
def permute(
    linears: dict[str, nn.Linear], prefix: str, inputs: list[Input], recipe: Recipe, head_width: int
) -> list[str]:
    """Give each linear with an N:M target the order of inputs that keeps most, where it folds into its neighbours.

    Returns:
        the full names of the linears that were permuted.

    """
    method, done = recipe.method, []
    for shared in inputs:
        name, pattern = shared.linears[0], recipe.targets.get(f"{prefix}.{shared.linears[0]}")
        if len(shared.linears) > 1 or pattern is None or not pattern.m:
            continue
        weight, norms = linears[name].weight.data, shared.statistics[str(method.statistic)].value()
        score = method.score(weight, norms, recipe.options(method))
        index = permuted(linears, name, score, head_width, pattern.m, partial(_order, pattern=pattern))
        if index is not None:
            shared.permute(index)
            done.append(f"{prefix}.{name}")
    return done


def _order(score: Tensor, pattern: Pattern) -> Tensor:
    return processes.send_from(permutation.permutation(score, pattern), 0)


def tolerance(dtype: torch.dtype) -> float:
    """How far rounding may move a block's output when its channels are reordered, as a part of its norm."""
    return max(1e-4, 4 * torch.finfo(dtype).eps)


def permuted(
    linears: dict[str, nn.Linear], name: str, score: Tensor, head_width: int, m: int, order: Order
) -> Tensor | None:
    """Permute the inputs of ``linears[name]`` by `order` of its `score` (R, C), in place, and fold it into the others.

    Args:
        linears: those of one block.
        name: the linear to permute.
        score: the importance of its weights.
        head_width: channels of an attention head.
        m: the M of N:M, which must divide the width of a head for a permutation within heads.
        order: finds the permutation.

    Returns:
        the permutation, (C,); None where the linear has no neighbours that it folds into exactly.

    """
    if name in CHANNELS and all(before in linears for before in CHANNELS[name]):
        index = order(score)
        _permute(linears[name], [linears[before] for before in CHANNELS[name]], index, index)
        return index
    if name in HEADS and HEADS[name] in linears and head_width % m == 0:
        values = linears[HEADS[name]]
        heads, groups = linears[name].in_features // head_width, values.out_features // head_width
        if (heads * head_width, groups * head_width) != (linears[name].in_features, values.out_features):
            return None
        inside = _within_heads(score, heads, groups, head_width, order)
        start = torch.arange(groups, device=inside.device)[:, None] * head_width
        rows = (inside + start).flatten()
        columns = inside.repeat_interleave(heads // groups, dim=0)
        columns = (columns + torch.arange(heads, device=inside.device)[:, None] * head_width).flatten()
        _permute(linears[name], [values], columns, rows)
        return columns
    return None


def _within_heads(score: Tensor, heads: int, groups: int, width: int, order: Order) -> Tensor:
    """The order inside each key/value head, (groups, width): its query heads share it, so their scores are stacked."""
    each = score.view(len(score), groups, heads // groups, width)
    return torch.stack([order(each[:, group].reshape(-1, width)) for group in range(groups)])


def _permute(linear: nn.Linear, before: list[nn.Linear], columns: Tensor, rows: Tensor) -> None:
    linear.weight.data = linear.weight.data[:, columns]
    for source in before:
        source.weight.data = source.weight.data[rows]
        if source.bias is not None:
            source.bias.data = source.bias.data[rows]
