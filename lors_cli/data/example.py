"""What training takes: token ids, and labels that leave out what the model is not to learn."""

from transformers import PreTrainedTokenizerBase

from lors_cli.data.sources import Source
from lors_cli.errors import request_error

IGNORED = -100

# input_ids and labels of one length; a packed example also has "documents", the lengths of the documents in it
Example = dict[str, list[int]]


def encode(text: str, learnt: list[tuple[int, int]], tokenizer: PreTrainedTokenizerBase, *, special: bool) -> Example:
    """Tokenise `text` in one piece, as the model will see it, and learn the tokens within the ranges of characters."""
    encoded = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True, verbose=False)
    labels = [
        token if any(start <= begin < end <= stop for start, stop in learnt) else IGNORED
        for token, (begin, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    ]
    return {"input_ids": list(encoded["input_ids"]), "labels": labels}


def row_error(source: Source, number: int, expected: str, got: str) -> Exception:
    """The error of a row that lacks what its format has."""
    return request_error(
        source.key, expected, f"{source.path}, row {number}: {got}", "repair the row, or correct the format"
    )
