"""What can be checked of a training before any weight is read, and what is then known about it."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lors_cli import adapters, processes
from lors_cli.artifacts import tensors
from lors_cli.config.schema import Config
from lors_cli.config.train import Train
from lors_cli.errors import request_error
from lors_cli.models import linears, load, targets
from lors_cli.models.codes import Coded
from lors_cli.models.device import pick_device
from lors_cli.training import documents, reading, rehearsal
from lors_cli.training.batches import Batching
from lors_cli.training.beginning import Beginning
from lors_cli.training.memory_estimate import Needs
from lors_cli.training.reading import Data
from lors_cli.training.sharding import is_sharded


@dataclass(frozen=True)
class Training:
    """A training that was checked and can begin.

    Attributes:
        config: of the run.
        section: `train` or `align` of it.
        names: of the linears that may be adapted; of a sparse model those that were pruned will be.
        dtype: of the frozen weights.
        device: where this process computes.
        sharded: whether each process holds only a part of the frozen weights.
        data: to train on and to evaluate with.
        batching: how the samples are taken.
        needs: bytes, estimated.
        packing_tried: whether it is known that packed documents do not see each other, or nothing is packed.
        coded: the codes of a quantised model that are kept as such.
        beginning: the adapter that it starts from, if there is one.

    """

    config: Config
    section: Train
    names: list[str]
    dtype: str
    device: torch.device
    sharded: bool
    data: Data
    batching: Batching
    needs: Needs
    packing_tried: bool = True
    coded: Coded | None = None
    beginning: Beginning | None = None

    def plan(self) -> list[str]:
        """What a dry run says about it."""
        section = self.section
        way = f"{section.method} ({section.formulation})" if section.formulation else section.method
        rank = f"rank {section.rank}, " if adapters.METHODS[section.method].has_rank else ""
        shared = f" over {processes.count()} processes" if processes.count() > 1 else ""
        also = f", {self.needs.beside:,} of them of {' and '.join(section.also)}" if section.also else ""
        return [
            f"{way}, {rank}at most {len(self.names)} linears, {self.needs.trained:,} trainable parameters{also}",
            f"{reading.summary(self.data)}, {self.batching.per_step} a step{shared}, {self.batching.steps} steps",
            *(self.beginning.lines() if self.beginning else ()),
            *self.needs.lines(section),
            *reading.findings(self.data),
        ]


def check(config: Config, section: Train) -> None:
    """Check of a training what needs no model.

    Raises:
        RequestError: data cannot be read, or a device or a library is not there.

    """
    reading.check(section)
    _device(config)
    for logger in section.report_to:
        if importlib.util.find_spec(logger) is None:
            remedy = f"pip install '{logger}', or leave it out"
            raise request_error(f"{section.key}.report_to", "loggers that are installed", logger, remedy)


def prepare(
    config: Config,
    section: Train,
    skeleton: Any,
    tokenizer: Path,
    *,
    teacher: Any = None,
    coded: Coded | None = None,
    beginning: Beginning | None = None,
) -> Training:
    """Check a training that passed `check` against the shapes of its model, the data and this machine.

    Args:
        config: of the run.
        section: `train` or `align` of it.
        skeleton: the model without its weights.
        tokenizer: a directory that has the model's.
        teacher: the model to learn from without its weights, if there is one.
        coded: the codes of a quantised model that are kept as such.
        beginning: the adapter that it starts from, if there is one.

    Raises:
        RequestError: it cannot be carried out.

    """
    device = _device(config)
    load.warn_of_length(skeleton, section.sequence_length, f"{section.key}.sequence_length")
    tried = documents.check(skeleton, section.key) if section.packing else True
    names, dtype, sharded = _targets(skeleton, section), _dtype(config, section, skeleton), is_sharded(section)
    if section.target_modules:  # otherwise those that were pruned, which their weights tell
        rehearsal.check(skeleton, section, names)
    if section.option("quantization_aware") and coded and section.target_modules:
        targets.check_coded(names, coded.names, f"{section.key}.target_modules")
    if beginning and section.target_modules:
        beginning.check_targets(names)
    needs = Needs.of(skeleton, section, names, dtype, device, teacher=teacher, sharded=sharded, coded=coded)
    needs.check(section, dtype, device)
    load.load_tokenizer(tokenizer, skeleton, trust_remote_code=config.trust_remote_code)  # fits the model
    before = beginning.samples if beginning else 0
    data, steps = reading.read(config, section, tokenizer, before)
    batching = Batching.of(section, steps, before)
    return Training(config, section, names, dtype, device, sharded, data, batching, needs, tried, coded, beginning)


def _device(config: Config) -> torch.device:
    device = pick_device(config.device)
    if device.index and processes.count() == 1:  # transformers' Trainer takes the first one that it sees
        remedy = f"set CUDA_VISIBLE_DEVICES={device.index} and device: cuda"
        raise request_error("device", "cuda or cuda:0 for training", config.device, remedy)
    return device


def _targets(skeleton: Any, section: Train) -> list[str]:
    """The linears that may be adapted, each checked to be large enough for the rank."""
    shapes = linears.shapes(skeleton, asked=section.target_modules or ())
    names = linears.select(list(shapes), section.target_modules, f"{section.key}.target_modules")
    sizes = {name: shapes[name] for name in names}
    targets.check_rank(section.computed.adapter, section.rank, sizes, f"{section.key}.rank")
    return names


def _dtype(config: Config, section: Train, skeleton: Any) -> str:
    """The dtype of the frozen weights in training. float16 trains in float32, which holds its values exactly."""
    dtype: str = section.dtype or config.dtype
    if dtype == "auto":
        stored = getattr(skeleton.config, "dtype", None)
        dtype = tensors.dtype_name(stored) if isinstance(stored, torch.dtype) else "float32"
    return "float32" if dtype == "float16" else dtype
