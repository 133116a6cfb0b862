"""The first rows as they will be learnt, for people: what is learnt stands between ⟦ and ⟧."""

from itertools import groupby

from transformers import PreTrainedTokenizerBase

from lors_cli.data import formats, instructions
from lors_cli.data.cursor import open_cursor
from lors_cli.data.example import IGNORED, Example
from lors_cli.data.instructions import Rules
from lors_cli.data.joined import Joiner
from lors_cli.data.sources import Source

ROWS = 3
TOKENS = 24  # at each end of a longer part, which is cut in the middle


def first_examples(
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    kind: str | None,
    *,
    packing: bool,
    rules: Rules,
    streaming: bool = False,
) -> list[Example]:
    """What the first rows of a data set give to learn, before it is packed; arguments as of `instructions.examples`.

    Raises:
        RequestError: a row cannot be used.

    """
    kind = kind or formats.of_training(instructions.first_row(source, streaming=streaming), source)
    if kind == "text" and not packing:
        joiner = Joiner(tokenizer, length, [], first=True, rules=rules)
        for shard, number, row in open_cursor(source, streaming=streaming):
            joiner.add(row, number, shard)
            if joiner.tokens > 2 * ROWS * length:  # which is an estimate
                break
        return joiner.examples()[:ROWS]
    encoder = instructions.Encoder(tokenizer, length, kind, packing=packing, overlong="truncate", rules=rules)
    for shard, number, row in open_cursor(source, streaming=streaming):
        encoder.add(row, number, shard)
        if encoder.documents >= ROWS:
            break
    return encoder.kept[:ROWS]


def line(example: Example, tokenizer: PreTrainedTokenizerBase) -> str:
    """An example in one line, its learnt tokens marked and its long parts cut; line ends are escaped."""
    ids, shown, start = example["input_ids"], "", 0
    for learnt, labels in groupby(example["labels"], lambda label: label != IGNORED):
        end = start + len(list(labels))
        text = _part(ids, start, end, tokenizer)
        shown += f"⟦{text}⟧" if learnt else text
        start = end
    return shown


def _part(ids: list[int], start: int, end: int, tokenizer: PreTrainedTokenizerBase) -> str:
    if end - start <= 2 * TOKENS + 1:
        return _decoded(ids, start, end, tokenizer)
    cut = f" … {end - start - 2 * TOKENS} tokens … "
    ends = [(start, start + TOKENS), (end - TOKENS, end)]
    return cut.join(_decoded(ids, *part, tokenizer) for part in ends)


def _decoded(ids: list[int], start: int, end: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokens from `start` to `end` as they stand in the text: some decoders drop the space of a first token."""
    first = max(start - 1, 0)
    before, text = (str(tokenizer.decode(ids[first:stop], clean_up_tokenization_spaces=False)) for stop in (start, end))
    return text.removeprefix(before).replace("\r", "\\r").replace("\n", "\\n")
