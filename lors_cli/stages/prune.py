"""``lors prune``: dense model -> <output_dir>/pruned, one decoder block in memory at a time.

Each block sees the states that the pruned blocks before it produce: the statistics of its linears are gathered on
these, its linears are pruned, and it is run again for the states of the next.
"""

import logging
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lors_cli import processes, pruning
from lors_cli.artifacts import publish
from lors_cli.config.schema import Config
from lors_cli.data import calibration as data
from lors_cli.errors import LorsError
from lors_cli.models import effort, linears, load, measure, source
from lors_cli.models.device import pick_device
from lors_cli.models.effort import Effort
from lors_cli.models.reduction import Counts
from lors_cli.models.weights import open_weights
from lors_cli.run.facts import Pruned
from lors_cli.run.graph import Graph
from lors_cli.run.job import Job
from lors_cli.run.layout import STAGES
from lors_cli.sequential import memory_estimate, rehearsal
from lors_cli.sequential.engine import Pruning
from lors_cli.sequential.masks import Masks
from lors_cli.sequential.memory_estimate import Work
from lors_cli.sequential.prune_linears import Facts
from lors_cli.sequential.recipe import Recipe, build
from lors_cli.sparsity import mask
from lors_cli.stages import common, prune_structured

log = logging.getLogger(__name__)

VARIANT_SLACK = 0.0011  # for wanda's variant, whose bisection stops within 0.001


def prepare(config: Config, graph: Graph) -> Generator[None, None, Job]:
    """Check the request against the model's shapes, the calibration text and the machine; read no weights.

    Raises:
        RequestError: it cannot be carried out.

    """
    section = common.section(config, "prune", config.prune)
    common.check_row("prune.method", section.method, pruning.mistake(pruning.all_methods()[section.method]))
    if section.method in pruning.STRUCTURED:
        return (yield from prune_structured.prepare(config, section, graph))
    for name, rows in (("profile", pruning.PROFILES), ("repair", pruning.REPAIRS), ("update", pruning.UPDATES)):
        if (chosen := getattr(section, name)) in rows:
            common.check_row(f"prune.{name}", chosen, pruning.mistake(rows[chosen]))
    key = "prune.input" if section.input else "model"
    calibration = section.calibration
    if calibration:
        data.check(calibration.dataset.source("prune.calibration.dataset"), calibration.dataset.format)
    device = pick_device(config.device)
    mask_path = Path(section.mask) if section.mask else None
    masks = Masks(mask_path, trust_remote_code=config.trust_remote_code) if mask_path else None
    yield
    given = graph.input("prune", "model")
    common.check_plain(given, "prune")
    directory = given.path
    skeleton = load.skeleton(directory, config.dtype, trust_remote_code=config.trust_remote_code)
    linears.check_prunable(skeleton, key)
    every = linears.all_linears(skeleton)
    recipe = build(section, every, masks)
    if recipe.grid:
        common.check_groups(recipe.grid, {name: every[name] for name in recipe.targets}, "prune.quantize")
    if recipe.reads_text or section.profile:
        stepwise = section.sequential == "linear" and bool(recipe.statistics)
        rehearsal.check(
            skeleton, key, ranked=recipe.targets, linear_by_linear=stepwise, tuned=section.tune_blocks is not None
        )
    elif calibration:
        log.warning("prune.calibration is not used: %s does not look at activations", section.method)
        calibration = None
    if source.is_complete(directory):
        open_weights(directory, skeleton, key)
    calibrated = common.Calibrated.of(config, calibration, directory, skeleton, "prune")
    tokens, shape = calibrated.tokens, calibrated.shape
    if tokens is not None and recipe.update:
        _warn_of_few(tokens.numel(), recipe, skeleton)
    partial = publish.partial_directory(STAGES["prune"].output(config.output_dir))
    need = memory_estimate.estimate(skeleton, Work.of(recipe), shape, device)
    memory_estimate.check(need, device, partial)

    def work(partial: Path) -> Pruned:
        for line in need.lines():
            log.info("prune: %s", line)
        checkpoint = open_weights(directory, skeleton, key)
        engine = Pruning(skeleton, checkpoint, recipe, tokens, device, need.placement, config.seed)
        record = engine.run(partial)
        if processes.rank() > 0:
            return Pruned()
        targets, trust = list(recipe.targets), config.trust_remote_code
        common.write_config(directory, partial, skeleton, recipe.grid, targets, trust_remote_code=trust)
        made = {name: fact for block in record.done("prune") for name, fact in block["linears"].items()}
        facts = calibrated.facts(made)
        verified = _verify(partial, engine.recipe, made, trust)
        if engine.recipe.update:
            _log_update(made)
        tuning = _tuning_facts(record.done("prune"), engine.blocks.prefix)
        return Pruned(**facts, **verified, states=need.placement, profile=record.phases.get("profile"), tuning=tuning)

    return Job(
        stage="prune",
        inputs={"model": directory} | ({"mask": mask_path} if mask_path else {}),
        settings=calibrated.settings(config, section),
        config=config,
        work=work,
        resumable=True,
        plan=[_summary(recipe, shape, device), *_reduction(config, recipe, skeleton), *need.lines()],
        effort=_effort(config, recipe, shape, skeleton),
    )


def _effort(config: Config, recipe: Recipe, shape: tuple[int, int] | None, skeleton: PreTrainedModel) -> Effort:
    """What it computes; steps of tuning pass each block forward and back."""
    kept = {name: 1 - pattern.sparsity if pattern else 0.5 for name, pattern in recipe.targets.items()}
    fits = bool(recipe.update)
    hessian = recipe.method.statistic == "hessian"
    whole = effort.calibrated(skeleton, config.dtype, shape, kept, hessian=hessian, fits=fits, grid=recipe.grid)
    if (tuning := recipe.section.tune_blocks) and shape:
        whole += Effort(flops=3 * effort.forward(skeleton, tuning.steps * tuning.batch_size * shape[1]))
    return whole


def _summary(recipe: Recipe, windows: tuple[int, int] | None, device: torch.device) -> str:
    """What will be done, in one line of text."""
    section = recipe.section
    extras = [f"profile {section.profile}"] if section.profile else []
    extras += [f"repair {section.repair}"] if section.repair else []
    extras += [f"update {section.update}"] if recipe.update else []
    extras += [f"rounded to {recipe.grid.bits} bits in groups of {recipe.grid.group_size}"] if recipe.grid else []
    if tuning := section.tune_blocks:
        extras += [f"{tuning.steps} steps on each block towards target: {tuning.target}"]
    extras += [f"calibration {windows[0]} x {windows[1]} tokens"] if windows else []
    targets = Counter(str(pattern or section.mask) for pattern in recipe.targets.values())
    counts = ", ".join(f"{number} linears to {target}" for target, number in targets.items())
    return "; ".join([f"{section.method} on {device}: {counts}", *extras])


def _reduction(config: Config, recipe: Recipe, skeleton: PreTrainedModel) -> list[str]:
    """What LoRAM calls the theoretical reduction, in a run that recovers an adapter; nothing where a mask decides."""
    if not config.recover or None in recipe.targets.values():
        return []
    left = {name: 1 - pattern.sparsity for name, pattern in recipe.targets.items() if pattern}
    return [f"without the zeros, which take memory like other numbers: {Counts.of(skeleton, left).summary()}"]


def _warn_of_few(tokens: int, recipe: Recipe, skeleton: PreTrainedModel) -> None:
    """Say that there are inputs with more features than the calibration has tokens."""
    widths = {name: one.in_features for name, one in linears.all_linears(skeleton).items() if name in recipe.targets}
    if few := [name for name, width in widths.items() if width > tokens]:
        log.warning(
            "prune.update: %d calibration tokens limit the rank of Hessians; %d of %d linears have up to %d inputs;"
            " their damping is raised, but more prune.calibration.samples are better",
            tokens,
            len(few),
            len(widths),
            max(widths.values()),
        )


def _log_update(made: Facts) -> None:
    """What the update came to, over all linears."""
    updates = {name: fact["update"] for name, fact in made.items()}
    for name, update in updates.items():
        if update["error_after"] >= update["error_before"] > 0:
            log.warning("%s: the update did not make it better, so it is as it was pruned", name)
    before, after = (
        sum(update[key] for update in updates.values()) / len(updates) for key in ("error_before", "error_after")
    )
    left = sum(update["rows_left"] for update in updates.values())
    log.info(
        "prune: update: mean error of %d linears %.4f -> %.4f; %d rows are left", len(updates), before, after, left
    )


def _tuning_facts(blocks: list[dict[str, Any]], prefix: str) -> dict[str, Any] | None:
    """What tuning did to each block, by its name; None where none was tuned."""
    tuned = {f"{prefix}.{index}": block["tuning"] for index, block in enumerate(blocks) if block["tuning"]}
    if not tuned:
        return None
    kept = [name for name, facts in tuned.items() if facts["kept"]]
    seconds = sum(facts["seconds"] for facts in tuned.values())
    log.info("prune: tuned %d of %d blocks, %.1f s", len(tuned) - len(kept), len(blocks), seconds)
    if kept:
        log.warning("prune: tuning did not lower the loss of %s, which stay as they were", ", ".join(kept))
    return {"kept": len(kept), "seconds": round(seconds, 3), "blocks": tuned}


def _verify(directory: Path, recipe: Recipe, made: Facts, trust_remote_code: bool) -> dict[str, Any]:
    """Measure the saved files, print what the linears got, and check it against what was asked.

    Raises:
        LorsError: the files do not hold the pattern.

    """
    slack = VARIANT_SLACK if recipe.section.option("variant") else 0.0

    def check(name: str, weight: Tensor) -> None:
        pattern = recipe.targets.get(name)
        if pattern and not mask.holds(weight, pattern, slack):
            raise LorsError(f"{name}: the saved weights do not hold {pattern}")

    measured = measure.model(directory, check, trust_remote_code=trust_remote_code)
    if measured["not_finite"]:
        raise LorsError(
            f"the saved weights hold NaN or infinity in {', '.join(measured['not_finite'])}: check the model"
        )
    for name, facts in measured["modules"].items():
        if facts["negative_zeros"] or not facts["finite"]:
            raise LorsError(f"{name}: the saved weights hold -0.0, NaN or infinity: {facts}")
        pattern, pruned = recipe.targets.get(name), made.get(name, {})
        if abs(facts["sparsity"] - pruned.get("sparsity", facts["sparsity"])) > 1e-9:
            raise LorsError(
                f"{name}: {facts['sparsity']:.6f} of the saved weights are zeros, but {pruned['sparsity']:.6f} of those"
                " that were written: the file was damaged; --force starts over"
            )
        facts |= {"asked": str(pattern) if pattern else None, **pruned}
    common.log_modules(measured)
    if len({str(pattern) for pattern in recipe.targets.values()}) > 1 or len(recipe.targets) < len(measured["modules"]):
        log.info("%s", common.block_table(measured["modules"]))
    log.info(
        "prune: the files keep their size; zeros are stored like other numbers, and dense kernels run at dense speed"
    )
    kept = ("sparsity", "pattern", "modules", "quantization")
    return {key: measured[key] for key in kept if key in measured} | {
        "asked": recipe.section.model_dump(mode="json")["sparsity"]
    }
