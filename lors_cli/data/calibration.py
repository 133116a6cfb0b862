"""Windows of token ids for calibration, (windows, length), from rows of text, of messages, or of token ids.

text      {text}                             the rows joined by a blank line
chat      {messages: [{role, content}]}      each conversation by the tokenizer's own template
tokens    {input_ids: [...]}                 as they are: traces of a model's own reasoning, say
"""

import logging
from collections.abc import Iterator
from functools import partial
from itertools import chain, islice

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lors_cli.data import chat, formats, turns, windows
from lors_cli.data.fields import Fields, Place
from lors_cli.data.sources import Source
from lors_cli.errors import request_error

log = logging.getLogger(__name__)

FEW_TOKENS = 0.01  # distinct ones, as a fraction of all


def check(source: Source, kind: str | None) -> None:
    """Read the first row and check its fields: what can be said without a tokenizer.

    Raises:
        RequestError: the source cannot be read, is empty, or its rows have no format.

    """
    formats.of_calibration(next(source.rows()), source, kind)


def calibration_windows(
    source: Source,
    kind: str | None,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    count: int,
    *,
    sampling: str,
    seed: int,
) -> Tensor:
    """`count` windows of `length` tokens.

    Args:
        source: the rows.
        kind: one of `formats.CALIBRATION`; recognised if None.
        tokenizer: the model's.
        length: tokens per window.
        count: windows.
        sampling: "concat" cuts consecutive windows from the rows one after another, "random" takes each from a random
            place of a random row that is long enough.
        seed: of "random".

    Raises:
        RequestError: the rows have too few tokens, or do not have the format.

    """
    kind = formats.of_calibration(next(source.rows()), source, kind)
    documents: list[windows.Document]
    if kind == "text":
        if sampling == "concat":
            tokens = windows.concatenated(source, tokenizer, length, count)
        else:
            documents = [partial(_tokenise, tokenizer, text) for text in source.texts()]
            tokens = windows.random_windows(documents, source, length, count, seed)
    else:
        rows = _messages(source, tokenizer) if kind == "chat" else _token_ids(source, len(tokenizer))
        if sampling == "concat":
            ids = list(islice(chain.from_iterable(rows), length * count))
            tokens = windows.cut(ids, source, length, count)
        else:
            documents = [partial(list, ids) for ids in rows]
            tokens = windows.random_windows(documents, source, length, count, seed)
    distinct = len(tokens.unique())
    if distinct < max(FEW_TOKENS * min(tokens.numel(), len(tokenizer)), 2):
        log.warning(
            "%s: the %d windows have only %d different tokens, which tells little", source.path, len(tokens), distinct
        )
    if len(tokenizer.decode(tokens[0])) < length:
        log.warning("%s has more tokens than characters: the tokenizer does not know this script", source.path)
    return tokens


def _tokenise(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, verbose=False)["input_ids"]
    return ids


def _messages(source: Source, tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    for shard, number, row in source.located():
        place = Place(shard, number, can_ignore=False)
        text = chat.opened(turns.conversation(Fields(row, place)), place, tokenizer).whole
        yield tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def _token_ids(source: Source, vocabulary: int) -> Iterator[list[int]]:
    for shard, number, row in source.located():
        ids = next((row[field] for field in (source.field, *formats.TOKEN_FIELDS) if field and field in row), None)
        if not isinstance(ids, list) or not all(type(token) is int and 0 <= token < vocabulary for token in ids):
            raise request_error(
                source.key,
                f"a list of token ids from 0 to {vocabulary - 1} in every row",
                f"{shard.path}, row {number}: {ids!r:.60}",
                "use ids of this model's tokenizer",
            )
        yield ids
