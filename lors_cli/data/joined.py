"""Rows of text joined by a blank line and cut into windows, a chunk of rows at a time."""

from transformers import PreTrainedTokenizerBase

from lors_cli.data.example import Example
from lors_cli.data.instructions import Rules, text_of
from lors_cli.data.readers import Row
from lors_cli.data.sources import Source
from lors_cli.data.windows import SEPARATOR

CHARACTERS_PER_TOKEN = 4  # about, in English; only tells how many rows make a chunk


class Joiner:
    """The chunk's counterpart of `instructions.Encoder`: same methods, same counts.

    A chunk is tokenised in one piece, without special tokens; its last tokens, fewer than a window, are carried over.

    Args:
        tokenizer: the model's.
        length: tokens per window.
        carried: tokens over from the chunk before, which come first.
        first: whether no chunk came before, so that no blank line does either.
        rules: how rows are read.

    Attributes:
        carried: tokens over from this chunk, once it is cut.
        rows: that came; all of them are `documents`, none is `dropped` or `truncated`.
        tokens: an estimate from the characters so far, then those of the windows.

    """

    dropped = truncated = empty = eos_appended = eos_missing = 0  # windows do not end with a row

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, length: int, carried: list[int], *, first: bool, rules: Rules
    ) -> None:
        self._tokenizer, self._length, self.carried, self._rules = tokenizer, length, carried, rules
        self._texts = [] if first else [""]
        self.rows = self.tokens = self._characters = 0

    @property
    def documents(self) -> int:
        return self.rows

    def add(self, row: Row, number: int, source: Source) -> None:
        """Take a row; `number` and `source` name it in messages.

        Raises:
            RequestError: the row lacks the field, or has one that would be lost.

        """
        text = text_of(row, number, source, self._rules)
        self._texts.append(text)
        self._characters += len(text) + len(SEPARATOR)
        self.rows += 1
        self.tokens = self._characters // CHARACTERS_PER_TOKEN

    def examples(self) -> list[Example]:
        """The windows of the rows so far; to be called once."""
        text = SEPARATOR.join(self._texts) if self.rows else ""
        ids = self.carried + list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        whole = len(ids) // self._length
        self.tokens, self.carried = whole * self._length, ids[whole * self._length :]
        windows = [ids[start : start + self._length] for start in range(0, self.tokens, self._length)]
        return [{"input_ids": window, "labels": window} for window in windows]
