"""The data of a training: samples in training order, rows held out, and how many steps there are."""

import math
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from lors_cli.config.schema import Config, Train, TrainingDataset
from lors_cli.data import formats, instructions
from lors_cli.data.example import Example
from lors_cli.data.samples import Held, Streamed
from lors_cli.errors import request_error
from lors_cli.models import load
from lors_cli.training.run import Data

EPOCHS = 3  # where a config gives no length


def datasets(section: Train) -> dict[str, TrainingDataset]:
    """The data sets of a section by their place in the config."""
    found = {"train.dataset": section.dataset, "train.eval_dataset": section.eval_dataset}
    return {key: dataset for key, dataset in found.items() if dataset is not None}


def check(section: Train) -> None:
    """Read the first row of each data set and check its fields.

    Raises:
        RequestError: one cannot be read, is empty, lacks a field, or cannot be streamed as asked.

    """
    for key, dataset in datasets(section).items():
        instructions.check(dataset.source(key), dataset.format, streaming=dataset.streaming)


def read(config: Config, section: Train, structure: Path) -> tuple[Data, int]:
    """The data and the number of optimiser steps; of a stream nothing is read yet.

    Args:
        config: of the experiment.
        section: its train section.
        structure: a directory with the tokenizer.

    Raises:
        RequestError: rows cannot be used, or are fewer than asked for.

    """
    tokenizer = load.load_tokenizer(structure, trust_remote_code=config.trust_remote_code)
    padding = next((t for t in (tokenizer.pad_token_id, tokenizer.eos_token_id) if t is not None), 0)
    facts: dict[str, Any] = {}

    def examples(key: str, dataset: TrainingDataset) -> list[Example]:
        found, facts[key] = instructions.examples(
            dataset.source(key),
            tokenizer,
            section.sequence_length,
            dataset.format,
            packing=section.packing,
            overlong=section.overlong,
        )
        return found

    held_out = examples("train.eval_dataset", section.eval_dataset) if section.eval_dataset else []
    if section.dataset.streaming:
        stream, steps = _stream(config, section, tokenizer)
        return Data(stream, held_out, facts, int(padding)), steps
    found = examples("train.dataset", section.dataset)
    samples = Held(found, config.seed)
    return Data(samples, held_out, facts, int(padding)), _steps(section, samples, found)


def _steps(section: Train, samples: Held, examples: list[Example]) -> int:
    """Optimiser steps over data that are held."""
    if section.max_steps:
        return section.max_steps
    if section.max_tokens is None:
        return math.ceil((section.epochs or EPOCHS) * len(examples) / section.samples_per_step)
    there = sum(len(example["input_ids"]) for example in examples)
    if section.max_tokens > there and not section.repeat:
        raise request_error(
            "train.max_tokens",
            f"at most the {there} tokens of train.dataset, or train.repeat: true",
            section.max_tokens,
            "add data, lower max_tokens, or set train.repeat: true to start the data again",
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
    source = section.dataset.source("train.dataset")
    kind = section.dataset.format or formats.of_training(instructions.first_row(source, streaming=True), source)
    if section.max_tokens and kind != "text" and not section.packing:
        raise request_error(
            "train.packing",
            "true for a stream of rows with max_tokens: only full samples tell how many steps that is",
            "false",
            "set train.packing: true, or max_steps instead of max_tokens",
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
