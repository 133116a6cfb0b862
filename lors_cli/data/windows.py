"""Windows of token ids, (windows, length), cut from text. The same source gives the same windows everywhere."""

import random
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lors_cli.data.sources import Source
from lors_cli.errors import request_error

Document = Callable[[], list[int]]  # gives the tokens of one document

SEPARATOR = "\n\n"
# Text is read ahead in pieces of so many characters for each token that is still needed; more than any tokenizer
# packs into a token on average, so one piece usually is enough.
CHARACTERS_PER_TOKEN = 12
# Tokens at the end of a piece that may come out differently once more text follows.
UNSETTLED_TOKENS = 8


def concatenated(
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    count: int | None,
    *,
    at_most: bool = False,
    texts: Iterator[str] | None = None,
) -> Tensor:
    """The rows joined by a blank line, tokenised without special tokens, cut into windows from the start.

    Args:
        source: rows with a text field.
        tokenizer: the model's.
        length: tokens per window.
        count: how many windows are wanted; None takes all that fit. Of a long source only the start is read.
        at_most: whether fewer than `count` will do.
        texts: those of the source, where they are not simply its field of text.

    Raises:
        RequestError: the text is too short for `count` windows, or for one.

    """
    texts = source.texts() if texts is None else texts
    text, ended = next(texts), False
    needed = length * count if count else None
    while True:
        wanted = len(text) + CHARACTERS_PER_TOKEN * needed if needed else None
        text, ended = _extend(text, texts, wanted)
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if ended or (needed and len(ids) >= needed + UNSETTLED_TOKENS):
            break
    return cut(ids, source, length, count, at_most=at_most)


def cut(ids: list[int], source: Source, length: int, count: int | None, *, at_most: bool = False) -> Tensor:
    """Consecutive windows of the tokens `ids`, which came from `source`; arguments and errors as in `concatenated`."""
    whole = len(ids) // length
    least = 1 if at_most or count is None else count
    if whole < least:
        raise request_error(
            source.key,
            f"text for {least} windows of {length} tokens ({least * length} tokens)",
            f"{source.path} with {len(ids)} tokens",
            _less(source.section, len(ids), length, least),
        )
    whole = min(whole, count or whole)
    return torch.tensor(ids[: whole * length], dtype=torch.long).view(whole, length)


def _less(section: str, tokens: int, length: int, least: int) -> str:
    """What to write so that so many tokens are enough."""
    if tokens >= length:
        return f"set {section}.samples: {tokens // length}, or name a longer text"
    shorter = f"set {section}.sequence_length: {tokens // least}, or " if tokens // least >= 2 else ""
    return f"{shorter}name a longer text"


def _extend(text: str, texts: Iterator[str], wanted: int | None) -> tuple[str, bool]:
    """`text` with further rows up to `wanted` characters, and whether the rows have ended."""
    parts, size = [text], len(text)
    while wanted is None or size < wanted:
        row = next(texts, None)
        if row is None:
            return SEPARATOR.join(parts), True
        parts.append(row)
        size += len(row) + len(SEPARATOR)
    return SEPARATOR.join(parts), False


def random_windows(documents: list[Document], source: Source, length: int, count: int, seed: int) -> Tensor:
    """The papers' rule: `count` times a random window of a random document that has more than `length` tokens.

    Documents are drawn with replacement. Each is tokenised at most once, and those that are too short leave the draw,
    so the search ends whatever the text.

    Args:
        documents: what tokenises each document of `source`.
        source: where they came from.
        length: tokens per window.
        count: how many windows.
        seed: of the draw.

    Raises:
        RequestError: no document is long enough.

    """
    candidates, section = list(range(len(documents))), source.section
    tokenised: dict[int, list[int]] = {}
    generator = random.Random(seed)
    windows: list[list[int]] = []
    while len(windows) < count:
        if not candidates:
            raise request_error(
                source.key,
                f"a document of more than {length} tokens",
                f"{source.path}, whose {len(documents)} documents are all shorter",
                f"set {section}.sampling: concat, which joins documents, or a shorter {section}.sequence_length",
            )
        place = generator.randrange(len(candidates))
        chosen = candidates[place]
        if chosen not in tokenised:
            tokenised[chosen] = documents[chosen]()
        ids = tokenised[chosen]
        if len(ids) <= length:
            candidates[place] = candidates[-1]
            candidates.pop()
            continue
        start = generator.randrange(len(ids) - length)
        windows.append(ids[start : start + length])
    return torch.tensor(windows, dtype=torch.long)
