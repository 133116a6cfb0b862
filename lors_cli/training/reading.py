"""The data of a training: samples in training order, rows held out, and how many steps there are."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from lors_cli.config.schema import Config
from lors_cli.config.train import Train, TrainingDataset
from lors_cli.data import formats, instructions
from lors_cli.data.example import Example
from lors_cli.data.samples import Held, Streamed
from lors_cli.data.sources import Source
from lors_cli.errors import request_error
from lors_cli.models import load
from lors_cli.training.batches import Samples

EPOCHS = 3  # where a config gives no length


@dataclass
class Data:
    """What a training reads.

    Attributes:
        train: the samples to train on.
        held_out: those for a held-out loss.
        facts: what reading has found, by the data sets' keys in the section.
        padding: the token to pad with.

    """

    train: Samples
    held_out: list[Example]
    facts: dict[str, Any]
    padding: int


def recorded(data: Data) -> dict[str, Any]:
    """What reading has found, for the manifest. An alignment is recorded under the keys of a training, too."""
    facts = {**data.facts, "dataset": {**data.facts.get("dataset", {}), **data.train.facts()}}
    return {f"train.{name}": found for name, found in facts.items()}


def identities(section: Train) -> dict[str, Any]:
    """What determines the rows, for the manifest, under the same keys."""
    return {f"train.{name}": _source(section, name).identity() for name in _datasets(section)}


def _datasets(section: Train) -> dict[str, TrainingDataset]:
    """The data sets of a section by their keys in it."""
    both = {"dataset": section.dataset, "eval_dataset": section.eval_dataset}
    return {name: dataset for name, dataset in both.items() if dataset is not None}


def _source(section: Train, name: str) -> Source:
    return _datasets(section)[name].source(f"{section.key}.{name}")


def check(section: Train) -> None:
    """Read the first row of each data set and check its fields.

    Raises:
        RequestError: one cannot be read, is empty, lacks a field, or cannot be streamed as asked.

    """
    for name, dataset in _datasets(section).items():
        instructions.check(_source(section, name), dataset.format, streaming=dataset.streaming)


def read(config: Config, section: Train, directory: Path) -> tuple[Data, int]:
    """The data and the number of optimiser steps; of a stream nothing is read yet.

    Args:
        config: of the experiment.
        section: its train section.
        directory: one that has the tokenizer.

    Raises:
        RequestError: rows cannot be used, or are fewer than asked for.

    """
    tokenizer = load.load_tokenizer(directory, trust_remote_code=config.trust_remote_code)
    padding = next((t for t in (tokenizer.pad_token_id, tokenizer.eos_token_id) if t is not None), 0)
    facts: dict[str, Any] = {}

    def examples(name: str) -> list[Example]:
        read, facts[name] = instructions.examples(
            _source(section, name),
            tokenizer,
            section.sequence_length,
            _datasets(section)[name].format,
            packing=section.packing,
            overlong=section.overlong,
        )
        return read

    held_out = examples("eval_dataset") if section.eval_dataset else []
    if section.dataset.streaming:
        stream, steps = _stream(config, section, tokenizer)
        return Data(stream, held_out, facts, int(padding)), steps
    held = examples("dataset")
    samples = Held(held, config.seed)
    return Data(samples, held_out, facts, int(padding)), _steps(section, samples, held)


def _steps(section: Train, samples: Held, examples: list[Example]) -> int:
    """Optimiser steps over data that are held."""
    if section.max_steps:
        return section.max_steps
    if section.max_tokens is None:
        return math.ceil((section.epochs or EPOCHS) * len(examples) / section.samples_per_step)
    there = sum(len(example["input_ids"]) for example in examples)
    if section.max_tokens > there and not section.repeat:
        raise request_error(
            f"{section.key}.max_tokens",
            f"at most the {there} tokens of {section.key}.dataset, or {section.key}.repeat: true",
            section.max_tokens,
            f"add data, lower max_tokens, or set {section.key}.repeat: true to start the data again",
        )
    seen = taken = 0
    for sample in samples.starting_at(0):
        seen += len(sample["input_ids"])
        taken += 1
        if seen >= section.max_tokens and taken % section.samples_per_step == 0:
            break
    return taken // section.samples_per_step


def _stream(config: Config, section: Train, tokenizer: PreTrainedTokenizerBase) -> tuple[Streamed, int]:
    """A stream and its steps; a step has full samples, so tokens tell how many."""
    source = _source(section, "dataset")
    kind = section.dataset.format or formats.of_training(instructions.first_row(source, streaming=True), source)
    if section.max_tokens and kind != "text" and not section.packing:
        raise request_error(
            f"{section.key}.packing",
            "true for a stream of rows with max_tokens: only full samples tell how many steps that is",
            "false",
            f"set {section.key}.packing: true, or max_steps instead of max_tokens",
        )
    stream = Streamed(
        source,
        tokenizer,
        section.sequence_length,
        kind,
        config.seed,
        packing=section.packing,
        overlong=section.overlong,
        repeat=section.repeat,
    )
    per_step = section.samples_per_step * section.sequence_length
    return stream, section.max_steps or math.ceil((section.max_tokens or 0) / per_step)


def summary(data: Data) -> str:
    """What there is to train on, in a few words."""
    return f"{len(data.train)} samples" if isinstance(data.train, Held) else "a stream of samples"
