"""``lors train``: pruned model -> <output_dir>/adapter."""

import importlib.util
import logging
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from lors_cli import console
from lors_cli.adapters.attach import attach
from lors_cli.artifacts import adapter_file, tensors
from lors_cli.artifacts.adapter_file import AdapterFile
from lors_cli.artifacts.publish import scratch
from lors_cli.config.schema import Config, Train, TrainingDataset
from lors_cli.data import instructions
from lors_cli.errors import LorsError, request_error
from lors_cli.models import linears, load
from lors_cli.sparsity import mask, packed
from lors_cli.stages import common, inspect
from lors_cli.stages.job import Job
from lors_cli.training import run, start
from lors_cli.training.needs import Needs
from lors_cli.training.trainer import CHECKPOINTS, last_checkpoint

log = logging.getLogger(__name__)


def prepare(config: Config, earlier: list[str]) -> Job:
    """Check the request against the model's shapes and the data; read no weights.

    Raises:
        RequestError: it cannot be carried out.

    """
    section = common.section(config, "train", config.train)
    for key, dataset in _datasets(section).items():
        instructions.check(dataset.source(key), dataset.format)
    device = load.pick_device(config.device)
    if device.index:  # transformers' Trainer takes the first one that it sees
        remedy = f"set CUDA_VISIBLE_DEVICES={device.index} and device: cuda"
        raise request_error("device", "cuda or cuda:0 for training", config.device, remedy)
    for logger in section.report_to:
        if importlib.util.find_spec(logger) is None:
            remedy = f"pip install '{logger}', or leave it out"
            raise request_error("train.report_to", "loggers that are installed", logger, remedy)
    directory = common.pruned_directory(config, "train", section.input, earlier)
    structure = common.structure_directory(config, directory, earlier)
    skeleton = load.skeleton(structure, trust_remote_code=config.trust_remote_code)
    load.warn_of_length(skeleton, section.sequence_length, "train.sequence_length")
    names = _targets(skeleton, section)
    dtype = _dtype(config, section, skeleton)
    needs = Needs.of(skeleton, section, names, dtype)
    needs.check(section, dtype, device)
    data = _read_data(config, section, structure)
    steps = run.total_steps(section, len(data.train))
    output = Path(config.output_dir) / "adapter"
    return Job(
        stage="train",
        output=output,
        inputs={"pruned": directory},
        settings={
            **common.settings(config, section),
            "data": {key: dataset.source(key).identity() for key, dataset in _datasets(section).items()},
        },
        config=config,
        work=lambda partial: _train(config, section, directory, names, data, device, partial),
        report=lambda: console.result(str(output)),
        plan=_plan(section, needs, names, data, steps),
        resumable=True,
    )


def _datasets(section: Train) -> dict[str, TrainingDataset]:
    found = {"train.dataset": section.dataset, "train.eval_dataset": section.eval_dataset}
    return {key: dataset for key, dataset in found.items() if dataset is not None}


def _targets(skeleton: Any, section: Train) -> list[str]:
    """The linears that may be adapted, each checked to be large enough for the rank."""
    found = linears.all_linears(skeleton)
    names = linears.select(list(found), section.target_modules, "train.target_modules")
    sizes = {name: (found[name].out_features, found[name].in_features) for name in names}
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


def _read_data(config: Config, section: Train, structure: Path) -> run.Data:
    tokenizer = load.load_tokenizer(structure, trust_remote_code=config.trust_remote_code)
    facts, read = {}, {}
    for key, dataset in _datasets(section).items():
        source = dataset.source(key)
        read[key], facts[key] = instructions.examples(source, tokenizer, section.sequence_length, dataset.format)
    padding = next((t for t in (tokenizer.pad_token_id, tokenizer.eos_token_id) if t is not None), 0)
    return run.Data(read["train.dataset"], read.get("train.eval_dataset"), facts, int(padding))


def _plan(section: Train, needs: Needs, names: list[str], data: run.Data, steps: int) -> list[str]:
    way = f"{section.method} ({section.formulation})" if section.formulation else section.method
    return [
        f"{way}, rank {section.rank}, at most {len(names)} linears, {needs.trained:,} trainable parameters",
        f"{len(data.train)} examples, {section.samples_per_step} a step, {steps} steps",
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
    names: list[str],
    data: run.Data,
    device: torch.device,
    partial: Path,
) -> dict[str, Any]:
    skeleton = load.skeleton(directory, trust_remote_code=config.trust_remote_code)
    dtype = _dtype(config, section, skeleton)
    if (section.dtype or config.dtype) == "float16":
        log.warning("float16 would need loss scaling; training runs in float32, which holds its values exactly")
    if section.target_modules is None or section.base == "packed":
        measured = inspect.inspect_model(directory, trust_remote_code=config.trust_remote_code)["modules"]
        sparsities = {name: measured[name]["sparsity"] for name in names}
        names = names if section.target_modules else _pruned_linears(directory, sparsities)
        if section.base == "packed":
            _check_packable({name: sparsities[name] for name in names}, load.DTYPES[dtype])
    for key, facts in data.facts.items():
        log.info("%s: %s", key, ", ".join(f"{name} {value}" for name, value in facts.items()))
    # on the host until the adapters are in: a packed base must not pass through the device as a dense one
    model: Any = load.load_model(directory, dtype, torch.device("cpu"), trust_remote_code=config.trust_remote_code)
    model.config.use_cache = False
    set_seed(config.seed)
    options = {"dropout": section.dropout, "checkpoint": section.adapter_checkpointing}
    if section.merge_rounding == "stochastic":
        options["stochastic"] = True
    attached = attach(
        model,
        names,
        section.adapter,
        packed=section.base == "packed",
        rank=section.rank,
        alpha=section.alpha,
        **options,
    )
    model.to(device)
    if section.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    resume = last_checkpoint(scratch(partial) / CHECKPOINTS)
    if resume:
        log.info("train: resuming from %s", resume.name)
    else:
        start.initialize(model, attached, section, data.train, data.padding, config.seed)
    facts = run.train(config, section, model, attached, data, partial, resume)
    content = AdapterFile(
        section.method, section.rank, section.alpha, {n: dict(a.tensors()) for n, a in attached.items()}
    )
    if not all(bool(t.isfinite().all()) for named in content.modules.values() for t in named.values()):
        raise LorsError("the trained adapter is not finite; use a lower train.learning_rate. Nothing was published")
    adapter_file.save(partial, content, base=str(directory), dropout=section.dropout)
    return {**facts, "data": data.facts, "train_dtype": dtype, "init": section.resolved_init, "linears": len(names)}


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
