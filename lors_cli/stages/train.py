"""``lors train``: pruned model -> <output_dir>/adapter."""

import importlib.util
import logging
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from lors_cli import adapters, processes
from lors_cli.artifacts import adapter_file, tensors
from lors_cli.artifacts.adapter_file import AdapterFile
from lors_cli.artifacts.publish import scratch
from lors_cli.config.schema import Config, Train
from lors_cli.errors import DivergedError, LorsError, request_error
from lors_cli.models import linears, load, measure, memory, source, structure
from lors_cli.run import request
from lors_cli.run.graph import Graph, Input
from lors_cli.run.job import Job
from lors_cli.sparsity import mask, packed
from lors_cli.stages import common
from lors_cli.training import checkpoint, reading, run, setup, start
from lors_cli.training.batches import Plan
from lors_cli.training.needs import Needs

log = logging.getLogger(__name__)


def prepare(config: Config, graph: Graph) -> Job:
    """Check the request against the model's shapes and the data; read no weights.

    Raises:
        RequestError: it cannot be carried out.

    """
    section = common.section(config, "train", config.train)
    return job(config, section, graph.input("train", "pruned"), "train")


def job(config: Config, section: Train, model: Input, stage: str) -> Job:
    """The training of `section`, that of a `stage`, on `model`; errors as in `prepare`."""
    reading.check(section)
    device = load.pick_device(config.device)
    if device.index and processes.count() == 1:  # transformers' Trainer takes the first one that it sees
        remedy = f"set CUDA_VISIBLE_DEVICES={device.index} and device: cuda"
        raise request_error("device", "cuda or cuda:0 for training", config.device, remedy)
    for logger in section.report_to:
        if importlib.util.find_spec(logger) is None:
            remedy = f"pip install '{logger}', or leave it out"
            raise request_error("train.report_to", "loggers that are installed", logger, remedy)
    directory, skeleton = model.path, model.skeleton(config)
    load.warn_of_length(skeleton, section.sequence_length, "train.sequence_length")
    names = _targets(skeleton, section)
    dtype = _dtype(config, section, skeleton)
    teacher, teacher_skeleton = _teacher(config, section, skeleton)
    needs = Needs.of(
        skeleton,
        section,
        names,
        dtype,
        device,
        teacher=teacher_skeleton,
        sharded=setup.sharded(section),
    )
    needs.check(section, dtype, device)
    data, steps = reading.read(config, section, model.like)
    plan = Plan.of(section, steps)

    def work(partial: Path) -> dict[str, Any]:
        facts = _train(config, section, directory, teacher, names, data, plan, device, partial)
        log.info("train: peak memory %.2f GB, estimated %.2f", memory.peak() / 1e9, needs.total / 1e9)
        return {**facts, "estimated_bytes": needs.total}

    return Job(
        stage=stage,
        inputs={"pruned": directory, **({"teacher": teacher} if teacher else {})},
        settings={
            **request.settings(config, section),
            "data": {key: dataset.source(key).identity() for key, dataset in reading.datasets(section).items()},
        },
        config=config,
        work=work,
        plan=_plan(section, needs, names, data, plan),
        resumable=True,
    )


def _teacher(config: Config, section: Train, skeleton: Any) -> tuple[Path | None, Any]:
    """The directory and the skeleton of the model to learn from, checked to have the student's vocabulary."""
    if section.distill is None:
        return None, None
    name, key = section.distill.teacher, "train.distill.teacher"
    directory = source.resolve(config.model if name == "dense" else name, key)
    teacher = load.skeleton(directory, trust_remote_code=config.trust_remote_code)
    sizes = [model.config.get_text_config().vocab_size for model in (skeleton, teacher)]
    if sizes[0] != sizes[1]:
        expected = f"a model with the student's vocabulary of {sizes[0]} tokens"
        raise request_error(key, expected, f"{name} with {sizes[1]}", "distil from a model of the same family")
    return directory, teacher


def _targets(skeleton: Any, section: Train) -> list[str]:
    """The linears that may be adapted, each checked to be large enough for the rank."""
    shapes = linears.shapes(skeleton, asked=section.target_modules or ())
    names = linears.select(list(shapes), section.target_modules, "train.target_modules")
    sizes = {name: shapes[name] for name in names}
    for name in sorted(names, key=lambda name: min(sizes[name])):  # the tightest is named first
        if reason := _misfit(section, sizes[name], section.rank):
            largest = min(min(size) for size in sizes.values())
            fit = [r for r in range(1, largest + 1) if not any(_misfit(section, s, r) for s in {*sizes.values()})]
            every = f"at most {largest}" if len(fit) == largest else f"one of {', '.join(map(str, fit))}"
            raise request_error(
                "train.rank", f"{reason} {sizes[name]} of {name}", section.rank, f"for all linears: {every}"
            )
    return names


def _misfit(section: Train, size: tuple[int, int], rank: int) -> str | None:
    """Why the method cannot have that rank on a weight of that size."""
    try:
        section.adapter.shapes(*size, rank)
    except ValueError as error:
        return str(error)
    return None


def _plan(section: Train, needs: Needs, names: list[str], data: run.Data, plan: Plan) -> list[str]:
    way = f"{section.method} ({section.formulation})" if section.formulation else section.method
    rank = f"rank {section.rank}, " if adapters.METHODS[section.method].has_rank else ""
    shared = f" over {processes.count()} processes" if processes.count() > 1 else ""
    return [
        f"{way}, {rank}at most {len(names)} linears, {needs.trained:,} trainable parameters",
        f"{reading.summary(data)}, {plan.per_step} a step{shared}, {plan.steps} steps",
        *needs.lines(section),
    ]


def _dtype(config: Config, section: Train, skeleton: Any) -> str:
    """The dtype of the frozen weights in training. float16 trains in float32, which holds its values exactly."""
    dtype: str = section.dtype or config.dtype
    if dtype == "auto":
        stored = getattr(skeleton.config, "dtype", None)
        dtype = tensors.dtype_name(stored) if isinstance(stored, torch.dtype) else "float32"
    return "float32" if dtype == "float16" else dtype


def _train(
    config: Config,
    section: Train,
    directory: Path,
    teacher: Path | None,
    names: list[str],
    data: run.Data,
    plan: Plan,
    device: torch.device,
    partial: Path,
) -> dict[str, Any]:
    skeleton = load.skeleton(directory, trust_remote_code=config.trust_remote_code)
    dtype = _dtype(config, section, skeleton)
    if (section.dtype or config.dtype) == "float16":
        log.warning("float16 would need loss scaling; training runs in float32, which holds its values exactly")
    structured = structure.read(directory) is not None  # it has no zeros, and all of its linears learn
    if (section.target_modules is None and not structured) or section.base == "packed":
        measured = measure.model(directory, trust_remote_code=config.trust_remote_code)["modules"]
        sparsities = {name: measured[name]["sparsity"] if name in measured else 0.0 for name in names}
        names = names if section.target_modules or structured else _pruned_linears(directory, sparsities)
        if section.base == "packed":
            _check_packable({name: sparsities[name] for name in names}, load.DTYPES[dtype])
    for key, facts in data.facts.items():
        log.info("%s: %s", key, ", ".join(f"{name} {value}" for name, value in facts.items()))
    sharded = setup.sharded(section)
    model, attached = setup.model_and_adapters(
        config, section, directory, teacher, names, dtype, device, in_parts=sharded
    )
    checkpoints = scratch(partial) / checkpoint.CHECKPOINTS
    resume = processes.agree(checkpoint.last(checkpoints))
    if resume:
        log.info("train: resuming from %s", resume.name)
    else:
        steps = 1 if section.resolved_init == "random" else section.init_steps
        first = list(islice(data.train.starting_at(0), plan.per_step * steps))
        if len(first) < plan.per_step * steps:
            got = f"{len(first)} samples for {steps} of {plan.per_step}"
            raise LorsError(
                f"the data end before the steps that the start needs: {got}; lower train.batch_size or init_steps, or"
                " set train.repeat: true"
            )
        start.initialize(model, attached, section, first, plan, data.padding, device)
    facts = run.train(config, section, model, attached, data, plan, partial, resume, sharded=sharded)
    content = AdapterFile(
        section.method, section.rank, section.alpha, {n: dict(a.tensors()) for n, a in attached.items()}
    )
    if not all(bool(t.isfinite().all()) for named in content.modules.values() for t in named.values()):
        raise DivergedError("the trained adapter is not finite; use a lower train.learning_rate. Nothing was published")
    if processes.rank() == 0:
        adapter_file.save(partial, content, base=str(directory), dropout=section.dropout)
    found = {**data.facts, "train.dataset": {**data.facts.get("train.dataset", {}), **data.train.facts()}}
    return {**facts, "data": found, "train_dtype": dtype, "init": section.resolved_init, "linears": len(names)}


def _pruned_linears(directory: Path, sparsities: dict[str, float]) -> list[str]:
    """Those of the linears in `directory` that were pruned."""
    pruned = [name for name, sparsity in sparsities.items() if sparsity >= mask.DENSE_BELOW]
    if not pruned:
        raise request_error(
            "train.target_modules",
            "linears to adapt; without it, those that were pruned",
            f"{directory}, none of whose linears has zeros",
            "prune the model first, or name the linears (train.target_modules: ['*'] for all)",
        )
    return pruned


def _check_packable(sparsities: dict[str, float], dtype: torch.dtype) -> None:
    """Refuse to pack a weight that would only grow."""
    least = packed.smallest_sparsity(dtype)
    name, sparsity = min(sparsities.items(), key=lambda item: item[1])
    if sparsity < least:
        raise request_error(
            "train.base",
            f"linears with at least {least:.3f} of zeros to pack in {tensors.dtype_name(dtype)}",
            f"{name} with {sparsity:.3f}",
            "leave it out of train.target_modules, or use base: dense",
        )
