"""The data of a training: samples in training order, rows held out, and how many steps there are."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from lors_cli.config.mixture import TrainingDataset
from lors_cli.config.schema import Config
from lors_cli.config.train import Train
from lors_cli.data import instructions, once, preview
from lors_cli.data.example import Ends, Example
from lors_cli.data.instructions import Rules
from lors_cli.data.mixed import Mixed, Part, seed_of, shares
from lors_cli.data.samples import Held, Streamed
from lors_cli.data.sources import Source
from lors_cli.errors import request_error
from lors_cli.models import load
from lors_cli.training import steps
from lors_cli.training.batches import Samples

# Counts of a data set that a person should hear of.
NOTES = {
    "truncated": "rows are longer than sequence_length and are cut",
    "dropped": "rows have nothing to learn within sequence_length and are left out",
    "empty": "rows have empty answers, which teach only to end",
    "eos_appended": "answers end with an appended end token (append_eos)",
    "eos_missing": "answers end without a token that ends generation: the model does not learn to stop after them",
}


@dataclass
class Data:
    """What a training reads.

    Attributes:
        train: the samples to train on.
        sources: the keys of the data sets that they are from, in the section.
        held_out: those for a held-out loss.
        facts: what reading has found, by the data sets' keys in the section.
        padding: the token to pad with.
        shown: the first rows as they will be learnt, by the keys of the data sets.
        plan: of a mixture, how many samples each source will give.

    """

    train: Samples
    sources: list[str]
    held_out: list[Example]
    facts: dict[str, Any]
    padding: int
    shown: dict[str, list[str]]
    plan: list[str]


def _found(data: Data) -> dict[str, dict[str, Any]]:
    """What reading has found, before training and during it, by the data sets' keys."""
    read = zip(data.sources, data.train.facts(), strict=True)
    train = {name: {**data.facts.get(name, {}), **facts} for name, facts in read}
    return {**train, **{name: facts for name, facts in data.facts.items() if name not in train}}


def recorded(data: Data) -> dict[str, Any]:
    """What reading has found, for the manifest; of a mixture a list. An alignment has the keys of a training, too."""
    return _by_keys(_found(data), data.sources)


def identities(section: Train) -> dict[str, Any]:
    """What determines the rows, for the manifest, under the same keys."""
    found = {name: _source(section, name).identity() for name in _datasets(section)}
    return _by_keys(found, list(section.sources))


def _by_keys(found: dict[str, dict[str, Any]], sources: list[str]) -> dict[str, Any]:
    """What was found of each data set, those of a mixture in a list."""
    several = [found.pop(name) for name in sources]
    merged: dict[str, Any] = {"dataset": several[0] if sources == ["dataset"] else several, **found}
    return {f"train.{name}": facts for name, facts in merged.items()}


def _datasets(section: Train) -> dict[str, TrainingDataset]:
    """The data sets of a section by their keys in it."""
    held_out = {"eval_dataset": section.eval_dataset} if section.eval_dataset else {}
    return {**section.sources, **held_out}


def _source(section: Train, name: str) -> Source:
    return _datasets(section)[name].source(f"{section.key}.{name}")


def check(section: Train) -> None:
    """Read the first row of each data set and check its fields.

    Raises:
        RequestError: one cannot be read, is empty, lacks a field, or cannot be streamed as asked.

    """
    for name, dataset in _datasets(section).items():
        instructions.check(
            _source(section, name),
            dataset.format,
            streaming=dataset.streaming,
            ignore=tuple(section.ignore_fields),
            learn_prompt=dataset.learn_prompt,
        )


def read(config: Config, section: Train, directory: Path, before: int = 0) -> tuple[Data, int]:
    """The data and the number of optimiser steps; of a stream nothing is read yet.

    Args:
        config: of the experiment.
        section: its train section.
        directory: one that has the tokenizer.
        before: samples of earlier trainings, after which this one goes on.

    Raises:
        RequestError: rows cannot be used, or are fewer than asked for.

    """
    tokenizer = load.load_tokenizer(directory, trust_remote_code=config.trust_remote_code)
    padding = next((t for t in (tokenizer.pad_token_id, tokenizer.eos_token_id) if t is not None), 0)
    rules = {name: _rules(section, dataset, tokenizer, directory) for name, dataset in _datasets(section).items()}
    sources = list(section.sources)
    shown = {name: _shown(section, name, tokenizer, rules[name]) for name in sources}
    facts: dict[str, Any] = {}

    def examples(name: str) -> list[Example]:
        source, length, kind, read_by = (
            _source(section, name),
            section.sequence_length,
            _datasets(section)[name].format,
            rules[name],
        )
        how = section.packing, section.overlong, read_by.ends, read_by.ignore, read_by.learn_prompt
        read, facts[name] = once.read(
            ("examples", source, directory, length, kind, how),
            lambda: instructions.examples(
                source, tokenizer, length, kind, packing=section.packing, overlong=section.overlong, rules=read_by
            ),
        )
        return read

    def samples(name: str, seed: int) -> Held | Streamed:
        dataset = section.sources[name]
        if not dataset.streaming:
            return Held(examples(name), seed)
        return Streamed(
            _source(section, name),
            tokenizer,
            section.sequence_length,
            dataset.format,
            seed,
            packing=section.packing,
            overlong=section.overlong,
            repeat=section.repeat,
            rules=rules[name],
        )

    held_out = examples("eval_dataset") if section.eval_dataset else []
    train: Held | Streamed | Mixed
    if section.weights:
        parts = [
            Part(
                f"{section.key}.{name}", section.sources[name].path, weight, samples(name, seed_of(config.seed, place))
            )
            for place, (name, weight) in enumerate(zip(sources, section.weights, strict=True))
        ]
        train = Mixed(parts)
    else:
        train = samples("dataset", config.seed)
    length = steps.count(section, train, before)
    return Data(train, sources, held_out, facts, int(padding), shown, _plan(section, train, length, before)), length


def _plan(section: Train, train: Held | Streamed | Mixed, length: int, before: int) -> list[str]:
    """How many samples each source of a mixture will give."""
    if not isinstance(train, Mixed):
        return []
    samples, lines = before + length * section.samples_per_step, []
    exact = shares(section.weights)
    for name, part, share, ends in zip(section.sources, train.parts, exact, steps.drawn(train, samples), strict=True):
        count = " or ".join(map(str, sorted(set(ends))))
        lines.append(f"{name}: {float(share):.4%} of the samples, {count} of {samples}, from {part.path}")
    return lines


def _rules(section: Train, dataset: TrainingDataset, tokenizer: PreTrainedTokenizerBase, directory: Path) -> Rules:
    """How rows are read.

    Raises:
        RequestError: an end token is to be appended that the tokenizer does not have.

    """
    if section.append_eos is True and tokenizer.eos_token_id is None:
        got = "a tokenizer without an end token"
        remedy = f"set eos_token in {directory / 'tokenizer_config.json'}, or remove append_eos"
        raise request_error(f"{section.key}.append_eos", "a tokenizer with an end token (eos_token)", got, remedy)
    ends = Ends(section.append_eos, load.stop_tokens(directory))
    return Rules(ends, tuple(section.ignore_fields), learn_prompt=dataset.learn_prompt)


def _shown(section: Train, name: str, tokenizer: PreTrainedTokenizerBase, rules: Rules) -> list[str]:
    dataset = section.sources[name]
    first = preview.first_examples(
        _source(section, name),
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
    if isinstance(data.train, Mixed):
        return f"a mixture of {len(data.sources)} sources"
    return f"{len(data.train)} samples" if isinstance(data.train, Held) else "a stream of samples"


def findings(data: Data) -> list[str]:
    """What a person should know of the rows: the first ones as they will be learnt, and what is not learnt."""
    lines = list(data.plan)
    for name, rows in data.shown.items():
        where = f"{name}, row" if data.plan else "row"
        lines += [f"learnt ⟦between these marks⟧, {where} {number}: {row}" for number, row in enumerate(rows, 1)]
    for name, facts in _found(data).items():
        if unused := facts.get("unused"):
            lines.append(f"{name}: columns that are not used: {', '.join(unused)}")
        for fact, meaning in NOTES.items():
            if facts.get(fact):
                lines.append(f"{name}: {facts[fact]} {meaning}")
    return lines


def drawn(data: Data) -> list[str]:
    """What a training has taken from each source of a mixture."""
    if not isinstance(data.train, Mixed):
        return []
    return [
        f"{name}: {one['drawn']} samples with {one['drawn_tokens']} tokens, {one['share']:.4%} of the samples,"
        f" from {one['path']}"
        for name, one in zip(data.sources, data.train.facts(), strict=True)
    ]
