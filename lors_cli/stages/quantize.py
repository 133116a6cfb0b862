"""``lors quantize``: pruned or dense model -> <output_dir>/quantized, one decoder block in memory at a time.

Zeros stay zeros. What is written is the ``pack-quantized`` form of compressed-tensors (`quantized_files`).
"""

import logging
import math
from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lors_cli import processes, quantization
from lors_cli.artifacts import publish
from lors_cli.config.quantize import Quantize
from lors_cli.config.schema import Config
from lors_cli.data import calibration as data
from lors_cli.errors import LorsError
from lors_cli.models import effort, linears, load, measure, source
from lors_cli.models.device import pick_device
from lors_cli.models.weights import Weights, open_weights
from lors_cli.quantization import stored
from lors_cli.quantization.grid import Grid
from lors_cli.run import manifest
from lors_cli.run.facts import Quantized
from lors_cli.run.graph import Graph
from lors_cli.run.job import Job
from lors_cli.run.layout import STAGES
from lors_cli.sequential import memory_estimate, rehearsal
from lors_cli.sequential.memory_estimate import Work
from lors_cli.sequential.prune_linears import Facts
from lors_cli.sequential.quantize import Quantizing, Rounding
from lors_cli.sparsity import mask
from lors_cli.stages import common

log = logging.getLogger(__name__)


def prepare(config: Config, graph: Graph) -> Generator[None, None, Job]:
    """Check the request against the model's shapes, the calibration text and the machine; read no weights.

    Raises:
        RequestError: it cannot be carried out.

    """
    section = common.section(config, "quantize", config.quantize)
    calibration, method = section.calibration, quantization.METHODS[section.method]
    if calibration:
        data.check(calibration.dataset.source("quantize.calibration.dataset"), calibration.dataset.format)
    device = pick_device(config.device)
    yield
    given, key = graph.input("quantize", "pruned"), "quantize.input" if section.input else "model"
    common.check_plain(given, "quantize")
    skeleton = given.skeleton(config, config.dtype)
    linears.check_prunable(skeleton, key)
    every = linears.all_linears(skeleton)
    targets = linears.select(list(every), section.targets, "quantize.targets")
    grid = section.grid
    common.check_groups(grid, {name: every[name] for name in targets}, "quantize")
    if method.statistic:
        rehearsal.check(skeleton, key, ranked=targets, leave_out=lambda places: _left(targets, places))
    elif calibration:
        log.warning("quantize.calibration is not used: %s does not look at activations", section.method)
        calibration = None
    if given.maker is None and source.is_complete(given.path):
        open_weights(given.path, skeleton, key)
    calibrated = common.Calibrated.of(config, calibration, given.like, skeleton, "quantize")
    tokens, shape = calibrated.tokens, calibrated.shape
    partial = publish.partial_directory(STAGES["quantize"].output(config.output_dir))
    need = memory_estimate.estimate(skeleton, _work(section, method), shape, device)
    memory_estimate.check(need, device, partial)

    def work(partial: Path) -> Quantized:
        for line in need.lines():
            log.info("quantize: %s", line)
        model = load.skeleton(given.path, config.dtype, trust_remote_code=config.trust_remote_code)
        checkpoint = open_weights(given.path, model, key)
        rounding = Rounding(method, section.options(), grid)
        record = Quantizing(model, checkpoint, rounding, targets, tokens, device, need.placement).run(partial)
        if processes.rank() > 0:
            return Quantized()
        common.write_config(given.path, partial, model, grid, targets, trust_remote_code=config.trust_remote_code)
        made = {name: fact for block in record.done("quantize") for name, fact in block["linears"].items()}
        facts = {"states": need.placement, **_origin(given.path), **calibrated.facts(made)}
        return Quantized(**facts, **_verify(partial, checkpoint, grid, made, config.trust_remote_code))

    return Job(
        stage="quantize",
        inputs={"pruned": given.path},
        settings=calibrated.settings(config, section),
        config=config,
        work=work,
        resumable=True,
        plan=[_summary(section, skeleton, targets, grid, shape, device), *need.lines()],
        effort=effort.calibrated(
            skeleton,
            config.dtype,
            shape,
            dict.fromkeys(targets, 1.0),
            hessian=bool(method.statistic),
            fits=False,
            grid=grid,
        ),
    )


def _left(targets: list[str], places: list[str]) -> tuple[str, str]:
    """What is written, and where, to leave the linears in these places as they are."""
    kept = dict.fromkeys(name.rsplit(".", 1)[-1] for name in targets)
    return "quantize.targets", f"[{', '.join(name for name in kept if not any(p.endswith(name) for p in places))}]"


def _work(section: Quantize, method: quantization.Method) -> Work:
    statistics = [method.statistic] if method.statistic else []
    factors = 3 + bool(section.option("act_order")) if statistics else 0  # in another order a Hessian is there twice
    return Work("quantize", section.states, statistics, factors, codes=True)


def _origin(directory: Path) -> dict[str, Any]:
    """What recovery and reports need of the pruned model, which may not be there any more."""
    made = manifest.read(directory)
    if made is None:
        return {}
    reduction = made.facts.given.get("reduction")
    return {"original": made.original_digest} | ({"reduction": reduction} if reduction is not None else {})


def _summary(
    section: Quantize,
    skeleton: PreTrainedModel,
    targets: list[str],
    grid: Grid,
    windows: tuple[int, int] | None,
    device: torch.device,
) -> str:
    """What will be done, in one line of text."""
    shapes, dtype = linears.shapes(skeleton), next(iter(load.layout(skeleton).values())).dtype
    weights = {name: math.prod(shapes[name]) for name in targets}
    bits = sum(weights[name] * stored.bits_per_weight(shapes[name], grid, dtype) for name in targets)
    kind = "symmetric" if grid.symmetric else "with zero points"
    extras = [f"calibration {windows[0]} x {windows[1]} tokens"] if windows else []
    what = f"{section.method} on {device}: {len(targets)} linears to {grid.bits} bits in groups of {grid.group_size}"
    return "; ".join([f"{what}, {kind}: {bits / sum(weights.values()):.3f} bits a weight with scales", *extras])


def _verify(directory: Path, before: Weights, grid: Grid, made: Facts, trust_remote_code: bool) -> dict[str, Any]:
    """Measure the saved files, check that no zero was lost, and say what became of the weights.

    Raises:
        LorsError: the files do not hold what was made.

    """

    def check(name: str, weight: Tensor) -> None:
        old = before.tensor(f"{name}.weight")
        if name in made and (lost := int(torch.count_nonzero(weight[old == 0]))):
            raise LorsError(f"{name}: {lost} weights that were zero are not zero in the saved file")
        if name in made and mask.zeros(weight) != made[name]["zeros"]:
            raise LorsError(f"{name}: the saved weights are not those that were written; --force starts over")

    measured = measure.model(directory, check, trust_remote_code=trust_remote_code)
    if measured["not_finite"]:
        raise LorsError(f"the saved weights hold NaN or infinity in {', '.join(measured['not_finite'])}")
    for name, facts in measured["modules"].items():
        facts |= made.get(name, {})
    common.log_modules(measured)
    was, now = (sum(fact[key] for fact in made.values()) for key in ("zeros_before", "zeros"))
    weights = sum(facts["parameters"] for name, facts in measured["modules"].items() if name in made)
    log.info(
        "quantize: %d linears, %.3f bits a weight; %d of their %d weights were zero and stay so, %d more were rounded"
        " to zero and count as zeros from here on (%.4f)",
        len(made),
        measured["quantization"]["bits_per_weight"],
        was,
        weights,
        now - was,
        now / weights,
    )
    facts = {key: measured[key] for key in ("sparsity", "pattern", "modules")}
    return {**facts, **measured["quantization"], "zeros_before": was, "zeros": now}
