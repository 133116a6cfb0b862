"""The data of a training: samples in training order, rows held out, and how many steps there are."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from lors_cli.config.schema import Config
from lors_cli.config.train import Train, TrainingDataset
from lors_cli.data import formats, instructions, preview
from lors_cli.data.example import Ends, Example
from lors_cli.data.instructions import Rules
from lors_cli.data.samples import Held, Streamed
from lors_cli.data.sources import Source
from lors_cli.errors import request_error
from lors_cli.models import load
from lors_cli.training.batches import Samples

# Counts of a data set that a person should hear of.
NOTES = {
    "truncated": "rows are longer than sequence_length and are cut",
    "dropped": "rows have nothing to learn within sequence_length and are left out",
    "empty": "rows have empty answers, which teach only to end",
    "eos_appended": "answers end with an appended end token (append_eos)",
    "eos_missing": "answers end without a token that ends generation: the model does not learn to stop after them",
}
EPOCHS = 3  # where a config gives no length


@dataclass
class Data:
    """What a training reads.

    Attributes:
        train: the samples to train on.
        held_out: those for a held-out loss.
        facts: what reading has found, by the data sets' keys in the section.
        padding: the token to pad with.
        shown: the first rows as they will be learnt.

    """

    train: Samples
    held_out: list[Example]
    facts: dict[str, Any]
    padding: int
    shown: list[str]


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
        ignore = tuple(section.ignore_fields)
        instructions.check(_source(section, name), dataset.format, streaming=dataset.streaming, ignore=ignore)


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
    rules = {name: _rules(section, tokenizer, directory) for name in _datasets(section)}
    shown = _shown(section, tokenizer, rules["dataset"])
    facts: dict[str, Any] = {}

    def examples(name: str) -> list[Example]:
        read, facts[name] = instructions.examples(
            _source(section, name),
            tokenizer,
            section.sequence_length,
            _datasets(section)[name].format,
            packing=section.packing,
            overlong=section.overlong,
            rules=rules[name],
        )
        return read

    held_out = examples("eval_dataset") if section.eval_dataset else []
    if section.dataset.streaming:
        stream, steps = _stream(config, section, tokenizer, rules["dataset"])
        return Data(stream, held_out, facts, int(padding), shown), steps
    held = examples("dataset")
    samples = Held(held, config.seed)
    return Data(samples, held_out, facts, int(padding), shown), _steps(section, samples, held)


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
    passes = (section.max_tokens - 1) // there  # whole ones, each of which has all samples: only the last is counted
    seen, taken = passes * there, passes * len(examples)
    for sample in samples.starting_at(taken):
        seen += len(sample["input_ids"])
        taken += 1
        if seen >= section.max_tokens:
            break
    return math.ceil(taken / section.samples_per_step)


def _stream(config: Config, section: Train, tokenizer: PreTrainedTokenizerBase, rules: Rules) -> tuple[Streamed, int]:
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
        rules=rules,
    )
    per_step = section.samples_per_step * section.sequence_length
    return stream, section.max_steps or math.ceil((section.max_tokens or 0) / per_step)


def _rules(section: Train, tokenizer: PreTrainedTokenizerBase, directory: Path) -> Rules:
    """How rows are read.

    Raises:
        RequestError: an end token is to be appended that the tokenizer does not have.

    """
    if section.append_eos is True and tokenizer.eos_token_id is None:
        got = "a tokenizer without an end token"
        remedy = f"set eos_token in {directory / 'tokenizer_config.json'}, or remove append_eos"
        raise request_error(f"{section.key}.append_eos", "a tokenizer with an end token (eos_token)", got, remedy)
    return Rules(Ends(section.append_eos, load.stop_tokens(directory)), tuple(section.ignore_fields))


def _shown(section: Train, tokenizer: PreTrainedTokenizerBase, rules: Rules) -> list[str]:
    dataset = section.dataset
    first = preview.first_examples(
        _source(section, "dataset"),
        tokenizer,
        section.sequence_length,
        dataset.format,
        packing=section.packing,
        rules=rules,
        streaming=dataset.streaming,
    )
    return [preview.line(example, tokenizer) for example in first]


def summary(data: Data) -> str:
    """What there is to train on, in a few words."""
    return f"{len(data.train)} samples" if isinstance(data.train, Held) else "a stream of samples"


def findings(data: Data) -> list[str]:
    """What a person should know of the rows: the first ones as they will be learnt, and what is not learnt."""
    lines = [f"learnt ⟦between these marks⟧, row {number}: {line}" for number, line in enumerate(data.shown, 1)]
    for name, facts in ({"dataset": data.train.facts(), **data.facts}).items():
        if unused := facts.get("unused"):
            lines.append(f"{name}: columns that are not used: {', '.join(unused)}")
        for fact, meaning in NOTES.items():
            if facts.get(fact):
                lines.append(f"{name}: {facts[fact]} {meaning}")
    return lines
