"""Whether a ``tokenizer.model`` is read as SentencePiece reads it, where no tokenizer.json says how it is meant."""

import importlib.util
from pathlib import Path

from transformers import PreTrainedTokenizerBase

NAME = "tokenizer.model"
SAMPLE = 50  # words of the vocabulary


def is_alone(directory: Path) -> bool:
    """Whether the directory has a tokenizer.model and no tokenizer.json."""
    return (directory / NAME).is_file() and not (directory / "tokenizer.json").is_file()


def is_readable() -> bool:
    """Whether the library is there that transformers needs to read one; without it, it asks for tiktoken instead."""
    try:
        return importlib.util.find_spec("google.protobuf") is not None
    except ModuleNotFoundError:
        return False


def difference(directory: Path, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """A text that `tokenizer` cuts into other pieces than the file itself does; None if it agrees.

    Without a tokenizer_config.json, transformers leaves out that a text begins as if after a space, for one. A file in
    tiktoken's format, of the same name, is not compared.
    """
    from sentencepiece import SentencePieceProcessor

    try:
        model = SentencePieceProcessor(model_file=str(directory / NAME))
    except (RuntimeError, OSError):
        return None
    pieces = (model.id_to_piece(number) for number in range(model.get_piece_size()))
    words = [piece[1:] for piece in pieces if piece[:1] == "▁" and piece[1:].isascii() and piece[1:].isalpha()]
    text = " ".join(words[:SAMPLE])
    return text if tokenizer.tokenize(text) != model.encode(text, out_type=str) else None
