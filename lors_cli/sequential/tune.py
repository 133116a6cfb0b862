"""``prune.tune_blocks``: gradient steps on what is left of one block, until it puts out what the dense block does.

Minimised is ``sum ||block(x) - target||^2 / sum ||target||^2`` over the calibration windows, by Adam with a learning
rate that falls linearly to zero, on the kept weights of the pruned linears, on their biases and on the block's norms.
Regional optimisation as in EBFT (Guo et al. 2024, arXiv 2402.12419) and Wanda++ (Yang et al. 2025, arXiv 2503.04992).
"""

import logging
import math
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from lors_cli import processes
from lors_cli.config.prune import TuneBlocks
from lors_cli.models.vectors import is_norm
from lors_cli.sequential.loop import BlockLoop

log = logging.getLogger(__name__)


def trainable(block: nn.Module, linears: Iterable[nn.Linear]) -> dict[str, nn.Parameter]:
    """What is tuned in a block, by its name there: the pruned `linears`, and the block's norms."""
    pruned = set(linears)
    return {
        f"{name}.{kind}": parameter
        for name, module in block.named_modules()
        if module in pruned or (is_norm(module) and all(one.dim() == 1 for one in module.parameters()))
        for kind, parameter in module.named_parameters(recurse=False)
    }


@torch.no_grad()
def tune(
    block: nn.Module, linears: dict[str, nn.Linear], loop: BlockLoop, options: TuneBlocks, seed: int
) -> dict[str, Any]:
    """Tune the pruned `linears` and the norms of `block` in place, and take the windows of `loop` to the next block.

    Zeros stay as they are, and a weight that would become zero keeps its value, so the support is the same to the bit.
    Where the loss does not fall, the block stays as it was.

    Args:
        block: on the device, pruned.
        linears: those that were pruned, by their name in the block.
        loop: has the windows and their targets.
        options: how many steps, how long they are, on how many windows.
        seed: of the order of the windows.

    Returns:
        `loss_before` and `loss_after` (None if it is not finite), whether the block is `kept` as it was, `seconds`.

    """
    started = time.monotonic()
    parameters, sparse = trainable(block, linears.values()), {f"{name}.weight" for name in linears}
    before = {name: parameter.data for name, parameter in parameters.items()}
    error, energy = _measure(block, loop)
    masters = {name: tensor.to(torch.float32, copy=True) for name, tensor in before.items()}
    if 0 < error < math.inf:
        with _computing(block, loop.blocks.dtype) as dtype, _repeatable():
            _descend(block, parameters, masters, sparse, loop, options, seed, error, dtype)
    for name, parameter in parameters.items():
        rounded = _rounded(masters.pop(name), before[name], sparse=name in sparse)
        parameter.data = processes.send_from(rounded, 0)  # machines may round differently
    tuned, _ = _measure(block, loop)
    if kept := not tuned < error:
        for name, parameter in parameters.items():
            parameter.data = before[name]
    loop.advance(block)  # only now, as the states that leave the block may take the place of those that enter it
    losses = {"loss_before": _loss(error, energy), "loss_after": _loss(tuned, energy)}
    return {**losses, "kept": kept, "seconds": round(time.monotonic() - started, 3)}


def report(block: str, tuning: dict[str, Any]) -> None:
    """Log what `tune` did to the `block`."""
    losses = [tuning["loss_before"], tuning["loss_after"]]
    before, after = ("not finite" if loss is None else f"{loss:.6f}" for loss in losses)
    if tuning["kept"]:
        log.warning("%s: stays as it was: tuning took its loss from %s to %s", block, before, after)
    else:
        log.debug("%s: tuned, loss %s to %s, %.2f s", block, before, after, tuning["seconds"])


def _loss(error: float, energy: float) -> float | None:
    loss = error / max(energy, torch.finfo(torch.float32).tiny)
    return loss if math.isfinite(loss) else None


def _rounded(tuned: Tensor, before: Tensor, *, sparse: bool) -> Tensor:
    """What was tuned, in the dtype of `before`; of a `sparse` weight with the support of `before`."""
    rounded = tuned.to(before.dtype)
    return torch.where((before != 0) & (rounded != 0), rounded, before) if sparse else rounded


def _measure(block: nn.Module, loop: BlockLoop) -> tuple[float, float]:
    """The squared error over all windows, and the energy of the targets; not finite where an output is not."""
    sums = torch.zeros(2, dtype=torch.float64)
    for window in loop.windows:
        output, target = loop.forward(block, window, "loss"), loop.target(window)
        sums += torch.stack([(output.float() - target).square().sum(), target.square().sum()]).double().cpu()
    error, energy = processes.add_up(sums).tolist()
    return error, energy


@contextmanager
def _computing(block: nn.Module, dtype: torch.dtype) -> Iterator[torch.dtype]:
    """The dtype that gradients are computed in, with what `block` holds in it: float16 would need loss scaling."""
    if dtype != torch.float16:
        yield dtype
        return
    held = {parameter: parameter.data for parameter in block.parameters()}
    for parameter in held:
        parameter.data = parameter.data.float()
    try:
        yield torch.float32
    finally:
        for parameter, data in held.items():
            parameter.data = data


@contextmanager
def _repeatable() -> Iterator[None]:
    """While this lasts, gradients are summed in the same order every time, on a GPU too, so that a run can go on."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings():
            # one stream is used, so that cuBLAS repeats itself without the variable that torch asks for
            warnings.filterwarnings("ignore", message=".*CUBLAS_WORKSPACE_CONFIG")
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def _descend(
    block: nn.Module,
    parameters: dict[str, nn.Parameter],
    masters: dict[str, Tensor],
    sparse: set[str],
    loop: BlockLoop,
    options: TuneBlocks,
    seed: int,
    error: float,
    dtype: torch.dtype,
) -> None:
    """Change the `masters`, the `parameters` in float32, by `options.steps` steps; the zeros of the `sparse` stay."""
    keep = {name: masters[name] != 0 for name in sparse}
    adam = torch.optim.Adam(masters.values(), options.learning_rate, foreach=False)
    count = int(processes.add_up(torch.tensor(len(loop.windows))))
    order = _order(count, seed)
    scale = count / (options.batch_size * error)  # Adam's steps do not depend on it, but the numbers stay near 1
    block.requires_grad_(False)
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    for step in range(options.steps):
        for name, parameter in parameters.items():
            parameter.data = masters[name].to(dtype)
        sums = {name: torch.zeros_like(master) for name, master in masters.items()}
        for window in islice(order, options.batch_size):
            if window in loop.windows:
                with torch.enable_grad():
                    output = loop.forward(block, window, "tuning", dtype)
                    loss = (output.float() - loop.target(window)).square().sum() * scale
                    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
                for total, gradient in zip(sums.values(), gradients, strict=True):
                    total += 0 if gradient is None else gradient
        for name, master in masters.items():
            master.grad = processes.add_up(sums.pop(name))
            if name in keep:
                master.grad *= keep[name]
        adam.param_groups[0]["lr"] = options.learning_rate * (1 - step / options.steps)
        adam.step()
    block.requires_grad_(False)


def _order(count: int, seed: int) -> Iterator[int]:
    """Windows without end: all of them in a new order again and again."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(count, generator=generator).tolist()
