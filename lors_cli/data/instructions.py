"""Training examples: token ids, and labels that are -100 where the model is not to learn.

alpaca    {instruction, input?, output}      the answer is learnt, with the end token; the prompt is not
chat      {messages: [{role, content}]}      the assistant's turns are learnt, by the tokenizer's own template
text      {text}                             every token; rows joined and cut into windows, or packed one by one
"""

from typing import Any

from transformers import PreTrainedTokenizerBase

from lors_cli.data import chat, formats
from lors_cli.data.cursor import open_cursor
from lors_cli.data.example import IGNORED, Example, encode, row_error
from lors_cli.data.packing import pack
from lors_cli.data.readers import Row
from lors_cli.data.sources import Source
from lors_cli.data.windows import concatenated
from lors_cli.errors import RequestError, request_error

# The prompts of Stanford Alpaca (Taori et al. 2023), which the papers train with.
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
ALPACA_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)


def examples(
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    kind: str | None,
    *,
    packing: bool = False,
    overlong: str = "truncate",
) -> tuple[list[Example], dict[str, Any]]:
    """All training examples of at most `length` tokens, and facts: the format and what was counted.

    Rows whose learnt part lies wholly beyond `length` are dropped: their loss would be a division by zero.

    Args:
        source: the rows.
        tokenizer: the model's.
        length: tokens per example, at most.
        kind: one of `formats.TRAINING`; recognised if None.
        packing: put several rows into one example.
        overlong: what becomes of rows of more than `length` tokens: "truncate" or "refuse". Rows of text are joined
            and have no length; packed ones lose nothing by it, for their rest is an example of its own.

    Raises:
        RequestError: a row lacks a field or is refused, or no example is left.

    """
    kind = kind or formats.of_training(next(source.rows()), source)
    if kind == "text" and not packing:
        windows = concatenated(source, tokenizer, length, None).tolist()
        joined = [{"input_ids": ids, "labels": ids} for ids in windows]
        return joined, {"format": kind, "examples": len(joined), "tokens": len(joined) * length}
    encoder = Encoder(tokenizer, length, kind, packing=packing, overlong=overlong)
    for shard, number, row in open_cursor(source, streaming=False):
        encoder.add(row, number, shard)
    encoded = encoder.examples()
    if not encoded:
        raise none_left(source, kind, length, encoder.rows)
    counts = {name: getattr(encoder, name) for name in ("dropped", "truncated", "tokens")}
    facts = {"format": kind, "examples": len(encoded), **counts}
    if packing:
        facts |= {"documents": encoder.documents, "padding": round(1 - encoder.tokens / (len(encoded) * length), 4)}
    return encoded, facts


class Encoder:
    """Rows, of a whole data set or of a part, into examples of at most `length` tokens; arguments as of `examples`.

    Attributes:
        rows: how many came.
        dropped: how many of them give nothing to learn.
        truncated: how many of them lost tokens.
        documents: how many rows, or pieces of rows, are learnt.
        tokens: how many tokens the documents have.

    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, length: int, kind: str, *, packing: bool, overlong: str
    ) -> None:
        self._tokenizer, self._length, self._packing, self._overlong = tokenizer, length, packing, overlong
        self._encode = {"alpaca": _alpaca, "chat": chat.conversation, "text": _document}[kind]
        self._splits = kind == "text"
        self._kept: list[Example] = []
        self._too_long: list[tuple[str, str]] = []  # the source's key, and which row has how many tokens
        self.rows = self.dropped = self.truncated = self.tokens = 0

    @property
    def documents(self) -> int:
        return len(self._kept)

    def add(self, row: Row, number: int, source: Source) -> None:
        """Encode a row; `number` and `source` name it in messages.

        Raises:
            RequestError: the row lacks a field.

        """
        whole, length = self._encode(row, number, source, self._tokenizer), self._length
        size = len(whole["input_ids"])
        if size > length and self._overlong == "refuse":
            self._too_long.append((source.key, f"{source.path}, row {number}: {size} tokens"))
        starts = range(0, size, length) if self._splits else [0]
        pieces = [{key: ids[start : start + length] for key, ids in whole.items()} for start in starts]
        kept = [piece for piece in pieces if any(label != IGNORED for label in piece["labels"][1:])]
        self.rows += 1
        self.dropped += not kept
        self.truncated += size > length and not self._splits
        self.tokens += sum(len(piece["input_ids"]) for piece in kept)
        self._kept += kept

    def examples(self) -> list[Example]:
        """The examples of all rows so far, packed if that was asked for.

        Raises:
            RequestError: rows were too long, and that is refused.

        """
        if self._too_long:
            (key, first), more = self._too_long[0], len(self._too_long) - 1
            raise request_error(
                key,
                f"rows of at most {self._length} tokens",
                f"{first} (and {more} more rows)" if more else first,
                f"raise {section(key)}.sequence_length, or set {section(key)}.overlong: truncate",
            )
        return pack(self._kept, self._length) if self._packing else self._kept


def section(key: str) -> str:
    """The config's section with the data set `key`."""
    return key.partition(".")[0]


def none_left(source: Source, kind: str, length: int, rows: int) -> RequestError:
    """The error of a data set whose `rows` give no example of at most `length` tokens."""
    if kind == "text":
        expected, remedy = "at least one row with text", "name another data set"
    else:
        expected = f"at least one row whose answer begins within {length} tokens"
        remedy = f"raise {section(source.key)}.sequence_length"
    return request_error(source.key, expected, f"{source.path}: none of {rows} rows", remedy)


def check(source: Source, kind: str | None, *, streaming: bool = False) -> None:
    """Read the first row and check its fields: what can be said without a tokenizer; `streaming` downloads no more.

    Raises:
        RequestError: the source cannot be read, is empty, or lacks a field.

    """
    row = first_row(source, streaming=streaming)
    kind = kind or formats.of_training(row, source)
    if kind == "text":
        source.text(row, 1)
    elif kind == "alpaca":
        _fields(row, 1, source)
    else:
        chat.read_messages(row, 1, source)


def first_row(source: Source, *, streaming: bool) -> Row:
    """The first row; with `streaming` without downloading a whole hub data set.

    Raises:
        RequestError: the source cannot be read, or is empty.

    """
    if streaming and source.is_hub:
        for _, _, row in open_cursor(source):
            return row
    return next(source.rows())


def _document(row: Row, number: int, source: Source, tokenizer: PreTrainedTokenizerBase) -> Example:
    """A row of text with the tokenizer's own start and end; nothing for a row without text, which is not a document."""
    text = source.text(row, number)
    ids: list[int] = list(tokenizer(text, verbose=False)["input_ids"]) if text else []
    if ids and tokenizer.eos_token_id is not None and ids[-1] != tokenizer.eos_token_id:
        ids.append(tokenizer.eos_token_id)
    return {"input_ids": ids, "labels": ids}


def _alpaca(row: Row, number: int, source: Source, tokenizer: PreTrainedTokenizerBase) -> Example:
    fields = _fields(row, number, source)
    prompt = (ALPACA_WITH_INPUT if fields["input"] else ALPACA_WITHOUT_INPUT).format(**fields)
    text = prompt + fields["output"]
    example = encode(text, [(len(prompt), len(text))], tokenizer, special=True)
    if tokenizer.eos_token_id is not None and example["input_ids"][-1:] != [tokenizer.eos_token_id]:
        for ids in example.values():
            ids.append(tokenizer.eos_token_id)
    return example


def _fields(row: Row, number: int, source: Source) -> dict[str, str]:
    fields = {name: row.get(name) for name in ("instruction", "input", "output")}
    fields["input"] = fields["input"] or ""
    for name, value in fields.items():
        if not isinstance(value, str):
            raise row_error(source, number, f"the field {name!r} with text", f"fields {sorted(row)}")
    return {name: str(value) for name, value in fields.items()}
