"""The order in which training takes its samples: of data that are held in memory, or of a stream.

A position is a number of samples from the start of training, whatever the number of processes.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from lors_cli.artifacts import digest
from lors_cli.data import formats, instructions
from lors_cli.data.cursor import Located, Place, open_cursor
from lors_cli.data.example import Example
from lors_cli.data.instructions import Rules
from lors_cli.data.joined import Joiner
from lors_cli.data.sources import Source
from lors_cli.errors import RequestError, request_error

# A chunk of a stream is shuffled as a whole and held as a whole: so many samples, about, of at most so many rows.
CHUNK_WINDOWS = 256
CHUNK_ROWS = 4096
# States are asked for samples that were used, which is later than they were given out: at most so many samples.
BEHIND = 16_384

COUNTS = ("rows", "documents", *instructions.COUNTS)


def _shuffled(count: int, *seeds: int) -> list[int]:
    """The numbers below `count` in an order that depends on all the seeds."""
    generator = torch.Generator().manual_seed(int(digest.of_value(seeds)[:16], 16))
    order: list[int] = torch.randperm(count, generator=generator).tolist()
    return order


class Held:
    """Samples in memory, shuffled anew in each pass.

    Args:
        examples: all of them, at least one.
        seed: of the order.

    """

    ended = ""  # never

    def __init__(self, examples: list[Example], seed: int) -> None:
        self._examples, self._seed = examples, seed

    def __len__(self) -> int:
        return len(self._examples)

    @property
    def tokens(self) -> int:
        """Those of a whole pass."""
        return sum(len(example["input_ids"]) for example in self._examples)

    def starting_at(self, position: int, state: dict[str, Any] | None = None) -> Iterator[Example]:
        """The samples from `position` on, without end; any position is reached without a state."""
        epoch, skip = divmod(position, len(self._examples))
        while True:
            for index in _shuffled(len(self._examples), self._seed, epoch)[skip:]:
                yield self._examples[index]
            epoch, skip = epoch + 1, 0

    def state(self, position: int) -> dict[str, Any]:
        """Nothing: see `starting_at`."""
        return {}

    def facts(self) -> list[dict[str, Any]]:
        """Nothing of its one source: what there is to say is known before training."""
        return [{}]


@dataclass(frozen=True)
class Start:
    """Where a chunk starts: its number, that of its first sample, that of the pass over the rows, and what came before.

    `place` is the place of its first row, `carried` the tokens that its first window begins with, and `found` the
    counts of rows and documents in the chunks before it. Checkpoints hold these names.
    """

    chunk: int = 0
    sample: int = 0
    epoch: int = 0
    place: Place = field(default_factory=dict)
    carried: list[int] = field(default_factory=list)
    found: dict[str, int] = field(default_factory=dict)


class Streamed:
    """Samples of rows that are read as training goes, a chunk at a time; each chunk is shuffled.

    Args:
        source: the rows; its shards are read one after another.
        tokenizer: the model's.
        length: tokens per sample, at most.
        kind: one of `formats.TRAINING`; recognised if None.
        seed: of the order within chunks.
        packing: put several rows of a chunk into one sample.
        overlong: as of `instructions.examples`; refused when a chunk comes that has such a row.
        repeat: start again where the rows end.
        rules: how rows are read.

    Raises:
        RequestError: the source cannot be read, or its rows have no known format.

    """

    ended = ""  # its source is the only one, and needs no name

    def __init__(
        self,
        source: Source,
        tokenizer: PreTrainedTokenizerBase,
        length: int,
        kind: str | None,
        seed: int,
        *,
        packing: bool = False,
        overlong: str = "truncate",
        repeat: bool = False,
        rules: Rules | None = None,
    ) -> None:
        self._source, self._tokenizer, self._length, self._seed = source, tokenizer, length, seed
        self._kind = kind or formats.of_training(instructions.first_row(source, streaming=True), source)
        self._packing, self._overlong, self._repeat = packing, overlong, repeat
        self._rules = rules or Rules()
        self._starts = deque([Start()])
        self._counts: dict[str, int] = {}

    @property
    def full(self) -> bool:
        """Whether samples have as many tokens as there is room for, or nearly so."""
        return self._kind == "text" or self._packing

    def starting_at(self, position: int, state: dict[str, Any] | None = None) -> Iterator[Example]:
        """The samples from `position` on, until the rows end unless they repeat.

        Args:
            position: of the first sample.
            state: what `state` gave for this position; without it the rows are read from the start.

        Raises:
            RequestError: a row cannot be used, or none can.

        """
        start = Start(**state) if state else Start()
        # a run of its own: an iterator that is given up halfway does not disturb the next one's states
        self._starts, self._counts = deque([start]), start.found
        return self._samples(self._starts, position)

    def state(self, position: int) -> dict[str, Any]:
        """Where the chunk with the sample `position` starts, as JSON; of positions that are not long past."""
        known = next((start for start in reversed(self._starts) if start.sample <= position), None)
        if known is None:
            raise ValueError(f"position {position} lies before {self._starts[0].sample}, the first that is remembered")
        return asdict(known)

    def facts(self) -> list[dict[str, Any]]:
        """Of its one source the format, and the counts of what the chunks so far, in all passes, had."""
        counts = {name: self._counts.get(name, 0) for name in COUNTS}
        return [{"format": self._kind, **counts, "unused": sorted(self._rules.unused)}]

    def _samples(self, starts: deque[Start], position: int) -> Iterator[Example]:
        for start, samples, following in self._chunks(starts[-1]):
            while len(starts) > 1 and starts[1].sample <= start.sample - BEHIND:
                starts.popleft()
            if self._repeat or following.epoch == start.epoch:
                starts.append(following)
            self._counts = following.found
            order = _shuffled(len(samples), self._seed, start.epoch, start.chunk)
            # taken from the end, and out of the list, so that nothing of a chunk is left when the next one is read
            samples[:] = [samples[index] for index in reversed(order[max(position - start.sample, 0) :])]
            while samples:
                yield samples.pop()

    def _chunks(self, start: Start) -> Iterator[tuple[Start, list[Example], Start]]:
        """Each chunk's start, its samples in the order of the rows, and the next chunk's start."""
        while True:
            cursor = open_cursor(self._source, start.place)
            rows = iter(cursor)
            epoch = start.epoch
            while start.epoch == epoch:
                samples, carried, counts, ended = self._chunk(rows, start)
                sample = start.sample + len(samples)
                place = {} if ended else cursor.place()
                following = Start(start.chunk + 1, sample, epoch + ended, place, carried, counts)
                if ended and not sample:  # every pass has the same rows: without this, an endless search
                    raise self._nothing(following)
                yield start, samples, following
                start = following
            if not self._repeat:
                return

    def _chunk(self, rows: Iterator[Located], start: Start) -> tuple[list[Example], list[int], dict[str, int], bool]:
        """The next chunk's samples, tokens carried over, counts with those before it, and whether the rows ended."""
        encoder = self._encoder(start)
        ended = True
        for shard, number, row in rows:
            encoder.add(row, number, shard)
            # checked after a row, never by looking at the next: the cursor's place is the next chunk's start
            if encoder.tokens >= CHUNK_WINDOWS * self._length or encoder.rows >= CHUNK_ROWS:
                ended = False
                break
        samples = encoder.examples()
        counts = {name: start.found.get(name, 0) + getattr(encoder, name) for name in COUNTS}
        return samples, encoder.carried if isinstance(encoder, Joiner) else [], counts, ended

    def _encoder(self, start: Start) -> Joiner | instructions.Encoder:
        if self._kind == "text" and not self._packing:
            return Joiner(self._tokenizer, self._length, start.carried, first=start.chunk == 0, rules=self._rules)
        return instructions.Encoder(
            self._tokenizer,
            self._length,
            self._kind,
            packing=self._packing,
            overlong=self._overlong,
            rules=self._rules,
        )

    def _nothing(self, end: Start) -> RequestError:
        if self._kind != "text" or self._packing:
            return instructions.none_left(self._source, self._kind, self._length, end.found["rows"])
        expected, got = f"text for a window of {self._length} tokens", f"{len(end.carried)} tokens"
        remedy = f"name a longer text, or lower {self._source.section}.sequence_length"
        return request_error(self._source.key, expected, f"{self._source.path} with {got}", remedy)
