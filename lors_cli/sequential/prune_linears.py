"""Pruning the linears of one block, in place, from what calibration gathered about their inputs."""

import math
import time
from typing import Any

import torch
from torch import Tensor, nn

from lors_cli import processes
from lors_cli.errors import LorsError
from lors_cli.quantization import stored
from lors_cli.quantization.grid import Grid
from lors_cli.quantization.stored import Quantized
from lors_cli.sequential.gather import Input
from lors_cli.sequential.recipe import Recipe
from lors_cli.sparsity import mask

Facts = dict[str, dict[str, Any]]


@torch.no_grad()
def prune(
    linears: dict[str, nn.Linear], prefix: str, inputs: list[Input], recipe: Recipe
) -> tuple[Facts, dict[str, Quantized]]:
    """Prune `linears` (by their name in the block `prefix`); each input's statistics are freed once used.

    Where several processes work together, each solves for some of the inputs and sends the weights to the others.

    Returns:
        what happened to each linear, and of those that are rounded too the codes, by their full names.

    Raises:
        LorsError: a weight or a statistic is not finite, or a solve failed; the message names the linear.

    """
    facts: Facts = {}
    rounded: dict[str, Quantized] = {}
    for place in range(len(inputs)):
        shared = inputs.pop(0)
        owner = place % processes.count()
        if owner == processes.rank():
            own = {name: linears[name] for name in shared.linears}
            facts |= _prune_shared(own, prefix, shared, recipe, rounded)
        del shared.statistics
        for name in shared.linears:
            weight, full = processes.send_from(linears[name].weight.data, owner), f"{prefix}.{name}"
            facts[full] = processes.agree(facts.get(full), owner)
            if recipe.grid:
                rounded[full] = sent(rounded.get(full), weight, recipe.grid, owner)
    return facts, rounded


def sent(made: Quantized | None, weight: Tensor, grid: Grid, owner: int) -> Quantized:
    """What process `owner` has `made` of a `weight` on a grid."""
    received = made or stored.room(weight, grid, weight.dtype)
    for tensor in (received.codes, received.scale, received.zero_point):
        if tensor is not None:
            processes.send_from(tensor, owner)
    return received


def _prune_shared(
    linears: dict[str, nn.Linear], prefix: str, shared: Input, recipe: Recipe, rounded: dict[str, Quantized]
) -> Facts:
    """Prune the linears of one input; the codes of those that are rounded too are put into `rounded`."""
    method, facts = recipe.method, {}
    first = f"{prefix}.{shared.linears[0]}"
    started = time.monotonic()
    for gathered in shared.statistics.values():
        if not gathered.finite():
            raise LorsError(f"{first}: NaN or infinity in its calibration inputs; check the model, or its dtype")
    statistic = shared.statistics[method.statistic].value() if method.statistic in shared.statistics else None
    try:
        statistic = method.prepare(statistic, recipe.options(method))
    except LorsError as error:
        raise LorsError(f"{first}: {error}") from None
    dense = {name: linear.weight.data for name, linear in linears.items()}
    for names in _together(list(linears), prefix, recipe):
        stacked = torch.cat([dense[name] for name in names]) if len(names) > 1 else dense[names[0]]
        fit, codes = None, None
        try:
            if recipe.grid:
                codes = _rounded(f"{prefix}.{names[0]}", stacked, statistic, recipe, recipe.grid)
                pruned = codes.weight(stacked.dtype)
            else:
                pruned, fit = _pruned(f"{prefix}.{names[0]}", stacked, statistic, shared, recipe)
        except LorsError as error:
            raise LorsError(f"{prefix}.{', '.join(names)}: {error}") from None
        seconds = (time.monotonic() - started) / len(names)
        rows = [len(dense[name]) for name in names]
        if codes:
            rounded |= {f"{prefix}.{name}": one for name, one in zip(names, codes.split(rows), strict=True)}
        for name, weight in zip(names, pruned.split(rows), strict=True):
            linears[name].weight.data = weight
            facts[f"{prefix}.{name}"] = {
                "tokens": shared.tokens,
                "sparsity": mask.sparsity(weight),
                "error": relative_error(f"{prefix}.{name}", dense[name], weight, shared.probe),
                "damping": getattr(statistic, "damping", None),
                "update": fit,
                "seconds": round(seconds, 3),
            }
        started = time.monotonic()
    return facts


def _rounded(full: str, dense: Tensor, statistic: Any, recipe: Recipe, grid: Grid) -> Quantized:
    """`dense` pruned to the target of the linear `full`, and rounded."""
    pattern = recipe.targets[full]
    if pattern is None:
        raise ValueError(f"{full} has no pattern to prune to")
    return recipe.method.prune_and_round(dense, statistic, pattern, grid, recipe.options(recipe.method))


def _together(names: list[str], prefix: str, recipe: Recipe) -> list[list[str]]:
    """The linears of one input in lists of those that are pruned as one matrix."""
    patterns = {recipe.targets[f"{prefix}.{name}"] for name in names}
    if recipe.method.stacks and len(patterns) == 1 and all(pattern and pattern.m for pattern in patterns):
        return [names]
    return [[name] for name in names]


def _pruned(
    full: str, dense: Tensor, statistic: Any, shared: Input, recipe: Recipe
) -> tuple[Tensor, dict[str, Any] | None]:
    """`dense` pruned and repaired to the target of the linear `full`, and updated; with what the update came to."""
    method, repair, pattern = recipe.method, recipe.repair, recipe.targets[full]
    if recipe.masks:
        statistic = recipe.masks.tensor(full).to(dense.device)
    pruned = method.prune(dense, statistic, pattern, recipe.options(method))
    if repair:
        gathered = shared.statistics[str(repair.statistic)].value()
        pruned = repair.repair(dense, pruned, gathered, pattern or mask.held_by(pruned), recipe.options(repair))
    if not recipe.update:
        return mask.positive_zeros(pruned), None
    gathered = shared.statistics[str(recipe.update.statistic)].value()
    fit = recipe.update.update(dense, pruned, gathered, shared.tokens, recipe.options(recipe.update))
    facts = {"error_before": fit.before, "error_after": fit.after}
    facts |= {"damping": fit.damping, "rows_left": fit.rows_left, "steps": fit.steps}
    return mask.positive_zeros(fit.weight), facts


def relative_error(name: str, dense: Tensor, pruned: Tensor, probe: Tensor) -> float | None:
    """``norm(X (W - W'))^2 / norm(X W)^2`` of the linear `name` on the probe's tokens.

    Raises:
        LorsError: its outputs are not finite.

    """
    if not probe.numel():
        return None
    x = probe.float()
    lost, whole = x @ (dense - pruned).float().T, x @ dense.float().T
    peak = torch.maximum(whole.abs().amax(), lost.abs().amax())  # squares of large outputs would overflow
    lost, whole = ((one / peak.clamp(min=torch.finfo(torch.float32).tiny)).square().sum() for one in (lost, whole))
    error = float(lost / whole.clamp(min=torch.finfo(torch.float32).tiny))
    if not math.isfinite(error):
        raise LorsError(f"{name}: NaN or infinity in its outputs; check the model, or its dtype")
    return error
