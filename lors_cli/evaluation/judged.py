"""What perplexity is measured on: consecutive windows of text, or rows of instructions, one a sample.

alpaca, chat and completion are rendered as in training, with the token that ends an answer. What training would learn
of a row counts, or with its prompts all of it but the first token. A row is cut to the length; one of which nothing is
left that counts is left out.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from lors_cli.artifacts import digest
from lors_cli.data import instructions, windows
from lors_cli.data.example import IGNORED, Ends, Example, encode
from lors_cli.data.instructions import Rules
from lors_cli.data.readers import Row
from lors_cli.data.sources import Source
from lors_cli.models import load


@dataclass(frozen=True)
class Sample:
    """Tokens `ids`, and `labels`, which are IGNORED where a token does not count; `number` of the window or row."""

    number: int
    ids: list[int]
    labels: list[int]

    @property
    def counted(self) -> int:
        """How many tokens count; nothing predicts the first one."""
        return sum(label != IGNORED for label in self.labels[1:])


Judged = tuple[list[Sample], dict[str, Any]]  # samples, and what results say of them


@dataclass(frozen=True)
class Text:
    """At most `most` consecutive windows of `length` tokens of the joined rows; all windows if it is None."""

    source: Source
    length: int
    most: int | None

    item = "window"
    rules = {"windows": "consecutive, of the rows joined by a blank line", "bos": False}

    def check(self) -> None:
        """Read the first row.

        Raises:
            RequestError: it is missing or has no text.

        """
        next(self.source.texts())

    def samples(self, tokenizer: PreTrainedTokenizerBase, directory: Path) -> Judged:
        """The windows in the tokens of the model in `directory`.

        Raises:
            RequestError: the text is missing, or too short for one window.

        """
        tokens = windows.concatenated(self.source, tokenizer, self.length, self.most, at_most=True).tolist()
        return [Sample(number, ids, ids) for number, ids in enumerate(tokens)], {
            "token_digest": digest.of_value(tokens)
        }


@dataclass(frozen=True)
class Rows:
    """Rows of instructions, each a sample of at most `length` tokens.

    Attributes:
        source: the rows.
        kind: alpaca, chat or completion.
        length: tokens, at most.
        most: rows, at most; all if it is None.
        seed: of a draw of `most` rows; the first ones are taken if it is None.
        prompts: whether prompts count too.
        ignore: fields to leave out.

    """

    source: Source
    kind: str
    length: int
    most: int | None
    seed: int | None
    prompts: bool
    ignore: tuple[str, ...]

    item = "row"
    rules = {"windows": "one row each, cut at its end", "bos": "as in training"}

    def check(self) -> None:
        """Read the first row and check its fields.

        Raises:
            RequestError: it is missing, lacks a field, or has one that would be lost.

        """
        instructions.check(self.source, self.kind, ignore=self.ignore)

    def samples(self, tokenizer: PreTrainedTokenizerBase, directory: Path) -> Judged:
        """The rows in the tokens of the model in `directory`, whose generation config says what ends an answer.

        Raises:
            RequestError: a row cannot be used, or none is left.

        """
        rules = Rules(Ends(stops=load.stop_tokens(directory)), self.ignore)
        samples: list[Sample] = []
        rows = dropped = truncated = 0
        for number, shard, place, row in self._rows():
            every = [
                encode(text, tokenizer, rules.ends)[0]
                for text in instructions.texts(row, place, shard, tokenizer, self.kind, rules)
            ]
            kept = [self._sample(number, one) for one in (every[-1:] if self.prompts else every)]
            kept = [sample for sample in kept if sample.counted]
            rows += 1
            dropped += not kept
            truncated += any(len(one["input_ids"]) > self.length for one in every)
            samples += kept
        if not samples:
            raise instructions.none_left(self.source, self.kind, self.length, rows)
        tokens = [[sample.ids, sample.labels] for sample in samples]
        counts = {"rows": rows, "dropped": dropped, "truncated": truncated}
        return samples, {"token_digest": digest.of_value(tokens), **counts}

    def _sample(self, number: int, example: Example) -> Sample:
        """One text of a row; the last one has all of the row."""
        ids = example["input_ids"][: self.length]
        return Sample(number, ids, ids if self.prompts else example["labels"][: self.length])

    def _rows(self) -> Iterator[tuple[int, Source, int, Row]]:
        """The rows to measure, each with its number among all, its shard and its number there."""
        every = ((number, *located) for number, located in enumerate(self.source.located()))
        if self.seed is None or self.most is None:
            yield from islice(every, self.most)
            return
        # Vitter's algorithm R (1985): after any number of rows, those that are kept are a fair draw of them
        generator = random.Random(self.seed)
        kept = list(islice(every, self.most))
        for row in every:
            if (place := generator.randrange(row[0] + 1)) < self.most:
                kept[place] = row
        yield from sorted(kept, key=lambda row: row[0])
