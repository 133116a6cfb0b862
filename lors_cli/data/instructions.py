"""Training examples: token ids, and labels that are -100 where the model is not to learn.

alpaca        {instruction, input?, output}      the answer is learnt, with the end token; the prompt is not
chat          {messages: [{role, content}]}      the assistant's turns are learnt, by the tokenizer's own template
completion    {prompt, completion}               the completion is learnt, with the end token
text          {text}                             every token; rows joined and cut into windows, or packed one by one
openhermes, openorca                             chats of these data sets, by the fields that `formats` names

No field of a row is lost without a word: it is used, it is metadata, which is named, or the row is refused.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from transformers import PreTrainedTokenizerBase

from lors_cli.data import chat, formats, prompts, turns
from lors_cli.data.cursor import open_cursor
from lors_cli.data.example import IGNORED, Ends, Example, Text, encode
from lors_cli.data.fields import Fields, Place
from lors_cli.data.packing import pack
from lors_cli.data.readers import Row
from lors_cli.data.sources import Source
from lors_cli.data.windows import concatenated
from lors_cli.errors import RequestError, request_error

COUNTS = ("dropped", "truncated", "tokens", "empty", "eos_appended", "eos_missing")


@dataclass(frozen=True)
class Rules:
    """How rows are read: how answers end, and the names of fields that are left out.

    With `learn_prompt` the prompts are learnt too: everything before the end of a row's last answer, once. `unused`
    gathers the names of columns that were found and not used.
    """

    ends: Ends = field(default_factory=Ends)
    ignore: tuple[str, ...] = ()
    learn_prompt: bool = False
    unused: set[str] = field(default_factory=set, compare=False)


def examples(
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    kind: str | None,
    *,
    packing: bool = False,
    overlong: str = "truncate",
    rules: Rules | None = None,
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
        rules: how rows are read.

    Raises:
        RequestError: a row lacks a field or is refused, or no example is left.

    """
    kind, rules = kind or formats.of_training(next(source.rows()), source), rules or Rules()
    if kind == "text" and not packing:
        rows = count()
        read = zip(open_cursor(source, streaming=False), rows, strict=False)
        texts = (text_of(row, number, shard, rules) for (shard, number, row), _ in read)
        windows = concatenated(source, tokenizer, length, None, texts=texts).tolist()
        joined = [{"input_ids": ids, "labels": ids} for ids in windows]
        facts = {"format": kind, "rows": next(rows), "examples": len(joined), "tokens": len(joined) * length}
        return joined, facts | {"unused": sorted(rules.unused)}
    encoder = Encoder(tokenizer, length, kind, packing=packing, overlong=overlong, rules=rules)
    for shard, number, row in open_cursor(source, streaming=False):
        encoder.add(row, number, shard)
    encoded = encoder.examples()
    if not encoded:
        raise none_left(source, kind, length, encoder.rows, learnt=encoder.learnt)
    counts = {name: getattr(encoder, name) for name in COUNTS}
    facts = {"format": kind, "rows": encoder.rows, "examples": len(encoded), **counts, "unused": sorted(rules.unused)}
    if packing:
        facts |= {"documents": encoder.documents, "padding": round(1 - encoder.tokens / (len(encoded) * length), 4)}
    return encoded, facts


class Encoder:
    """Rows, of a whole data set or of a part, into examples of at most `length` tokens; arguments as of `examples`.

    Attributes:
        kept: what is learnt of them, before it is packed.
        rows: how many came.
        dropped: how many of them give nothing to learn.
        learnt: whether a row has something to learn, at any length.
        truncated: how many of them lost tokens.
        empty: how many of them teach only to end, because their answers are empty.
        eos_appended: to how many texts the end token was appended.
        eos_missing: how many texts do not end in a token that ends generation.
        documents: how many rows, or pieces of rows, are learnt.
        tokens: how many tokens the documents have.

    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, length: int, kind: str, *, packing: bool, overlong: str, rules: Rules
    ) -> None:
        self._tokenizer, self._length, self._packing, self._overlong = tokenizer, length, packing, overlong
        self._kind, self._rules = kind, rules
        self.kept: list[Example] = []
        self._too_long: list[tuple[Source, str]] = []  # of which source, and which row has how many tokens
        self.rows = self.dropped = self.truncated = self.tokens = 0
        self.empty = self.eos_appended = self.eos_missing = 0
        self.learnt = False

    @property
    def documents(self) -> int:
        return len(self.kept)

    def add(self, row: Row, number: int, source: Source) -> None:
        """Encode a row; `number` and `source` name it in messages.

        Raises:
            RequestError: the row lacks a field, or has one that would be lost.

        """
        splits, length = self._kind == "text", self._length
        encoded = [self._document(row, number, source)] if splits else list(self._encoded(row, number, source))
        size = max(len(whole["input_ids"]) for whole in encoded)
        if size > length and self._overlong == "refuse":
            self._too_long.append((source, f"{source.path}, row {number}: {size} tokens"))
        kept = []
        for whole in encoded:
            starts = range(0, len(whole["input_ids"]), length) if splits else [0]
            pieces = [{key: ids[start : start + length] for key, ids in whole.items()} for start in starts]
            kept += [piece for piece in pieces if any(label != IGNORED for label in piece["labels"][1:])]
        self.learnt = self.learnt or any(label != IGNORED for whole in encoded for label in whole["labels"])
        self.rows += 1
        self.dropped += not kept
        self.truncated += size > length and not splits
        self.tokens += sum(len(piece["input_ids"]) for piece in kept)
        self.kept += kept

    def _encoded(self, row: Row, number: int, source: Source) -> Iterator[Example]:
        empty, all_texts = True, texts(row, number, source, self._tokenizer, self._kind, self._rules)
        for text in all_texts:
            example, end = encode(text, self._tokenizer, self._rules.ends)
            self.eos_appended += end == "appended"
            self.eos_missing += end == "missing"
            learnt = {label for label in example["labels"] if label != IGNORED}
            empty = empty and bool(learnt) and learnt <= self._rules.ends.all(self._tokenizer)
            if self._rules.learn_prompt and learnt and text is all_texts[-1]:  # the others begin as this one does
                _learn_prompt(example)
            yield example
        self.empty += empty

    def _document(self, row: Row, number: int, source: Source) -> Example:
        """A row of text with the tokenizer's own start and end; nothing for a row without text: it is no document."""
        text, end = text_of(row, number, source, self._rules), self._tokenizer.eos_token_id
        ids: list[int] = list(self._tokenizer(text, verbose=False)["input_ids"]) if text else []
        if ids and end is not None and ids[-1] != end and self._rules.ends.append is not False:
            ids.append(end)
        return {"input_ids": ids, "labels": ids}

    def examples(self) -> list[Example]:
        """The examples of all rows so far, packed if that was asked for.

        Raises:
            RequestError: rows were too long, and that is refused.

        """
        if self._too_long:
            (source, first), more = self._too_long[0], len(self._too_long) - 1
            raise request_error(
                source.key,
                f"rows of at most {self._length} tokens",
                f"{first} (and {more} more rows)" if more else first,
                f"raise {source.section}.sequence_length, or set {source.section}.overlong: truncate",
            )
        return pack(self.kept, self._length) if self._packing else self.kept


def _learn_prompt(example: Example) -> None:
    """Learn every token up to the last that is learnt."""
    labels = example["labels"]
    end = 1 + max(place for place, label in enumerate(labels) if label != IGNORED)
    labels[:end] = example["input_ids"][:end]


def none_left(source: Source, kind: str, length: int, rows: int, *, learnt: bool = True) -> RequestError:
    """The error of a data set whose `rows` give no example of at most `length` tokens, or, not `learnt`, of any."""
    if kind == "text":
        expected, remedy = "at least one row with text", "name another data set"
    elif not learnt:
        expected, remedy = "at least one answer to learn", "give the answers that are to be learnt a weight of 1"
    else:
        expected = f"at least one row whose answer begins within {length} tokens"
        remedy = f"raise {source.section}.sequence_length"
    return request_error(source.key, expected, f"{source.path}: none of {rows} rows", remedy)


def check(
    source: Source,
    kind: str | None,
    *,
    streaming: bool = False,
    ignore: tuple[str, ...] = (),
    learn_prompt: bool = False,
) -> None:
    """Read the first row and check its fields: what can be said without a tokenizer; `streaming` downloads no more.

    Raises:
        RequestError: the source cannot be read, is empty, lacks a field, or has one that would be lost; or its rows
            have no prompts that could be learnt.

    """
    row = first_row(source, streaming=streaming)
    kind, rules = kind or formats.of_training(row, source), Rules(ignore=ignore, learn_prompt=learn_prompt)
    if learn_prompt and kind == "text":
        expected = "no learn_prompt, because the rows are text: they have no prompts, and every token is learnt"
        raise request_error(f"{source.key}.learn_prompt", expected, "true", "remove learn_prompt")
    if source.field and kind in ("alpaca", "completion", *formats.LAYOUTS):
        expected = f"no field with format: {kind}, whose names are fixed"
        remedy = f"remove field, or set {source.key}.format: text"
        raise request_error(f"{source.key}.field", expected, source.field, remedy)
    if kind == "text":
        text_of(row, 1, source, rules)
    else:
        _read(row, 1, source, kind, rules, end="")


def first_row(source: Source, *, streaming: bool) -> Row:
    """The first row; with `streaming` without downloading a whole hub data set.

    Raises:
        RequestError: the source cannot be read, or is empty.

    """
    if streaming and source.is_hub:
        for _, _, row in open_cursor(source):
            return row
    return next(source.rows())


def texts(
    row: Row, number: int, source: Source, tokenizer: PreTrainedTokenizerBase, kind: str, rules: Rules
) -> list[Text]:
    """The texts of a row of any format but text, with what is learnt of them.

    Raises:
        RequestError: the row lacks a field, has one that would be lost, or does not fit the chat template.

    """
    end = "" if rules.ends.append is False else tokenizer.eos_token or ""
    read = _read(row, number, source, kind, rules, end)
    return [read] if isinstance(read, Text) else chat.texts(read, Place(source, number), tokenizer, rules.ends)


def _read(row: Row, number: int, source: Source, kind: str, rules: Rules, end: str) -> Text | turns.Conversation:
    """What a row says, with all of its columns accounted for."""
    fields = Fields(row, Place(source, number), rules.ignore)
    read: Text | turns.Conversation
    if kind in formats.LAYOUTS:
        formats.check_layout(row, fields.place, kind)
    said: list[str] = []
    if kind not in ("alpaca", "completion") or (kind == "alpaca" and prompts.has_turns(fields)):
        talk = read = turns.conversation(fields, rules.ignore)
        said = [turn["content"] for turn in talk.turns]
        if rules.learn_prompt and talk.left_out:
            expected = "rows that learn all of their turns, because learn_prompt is true"
            remedy = f"remove learn_prompt, or set {source.section}.ignore_fields: [{talk.left_out}]"
            got = f"{source.path}, row {number}: {talk.left_out} leaves a turn out"
            raise request_error(f"{source.key}.learn_prompt", expected, got, remedy)
        if kind == "alpaca":
            read = prompts.conversation(talk, fields.place, end)
    else:
        read = prompts.alpaca(fields, end) if kind == "alpaca" else prompts.completion(fields)
    rules.unused.update(fields.check_rest([*fields.taken, *said]))
    return read


def text_of(row: Row, number: int, source: Source, rules: Rules) -> str:
    """The text of a row of text, with all of its columns accounted for.

    Raises:
        RequestError: the row has no text, or a field that would be lost.

    """
    text, fields = source.text(row, number), Fields(row, Place(source, number), rules.ignore)
    fields.take(source.field or "text")
    rules.unused.update(fields.check_rest([text], only_text=True))
    return text
