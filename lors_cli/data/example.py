"""What training takes: token ids, and labels that leave out what the model is not to learn."""

from dataclasses import dataclass, field
from itertools import pairwise

from transformers import PreTrainedTokenizerBase

IGNORED = -100

# input_ids and labels of one length; a packed example also has "documents", the lengths of the documents in it
Example = dict[str, list[int]]
Span = tuple[int, int]  # a range of characters


@dataclass(frozen=True)
class Text:
    """A text and the ranges of it that are learnt, in order; `special` says whether the tokenizer adds its own ends."""

    text: str
    learnt: list[Span]
    special: bool = False


@dataclass(frozen=True)
class Ends:
    """How answers end.

    Attributes:
        append: whether the end token follows the last answer; "auto" appends it where no token of `stops` ends it.
        stops: the tokens that end generation, beside the tokenizer's end token.

    """

    append: bool | str = "auto"
    stops: frozenset[int] = field(default_factory=frozenset)

    def all(self, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
        """The tokens that end generation."""
        return self.stops if tokenizer.eos_token_id is None else self.stops | {tokenizer.eos_token_id}


def encode(text: Text, tokenizer: PreTrainedTokenizerBase, ends: Ends) -> tuple[Example, str]:
    """The tokens of a text, as the model will see them, with labels on those that are learnt.

    An answer is learnt up to the first of the tokens that end it: nothing is generated after that one.

    Returns:
        the example, and the end of its last answer, if one is learnt: "there", "appended" or "missing".

    """
    ids, offsets = _tokenise(text, tokenizer)
    labels, end, found = [IGNORED] * len(ids), tokenizer.eos_token_id, "missing" if text.learnt else "there"
    stops = ends.all(tokenizer)
    for number, (start, stop) in enumerate(text.learnt, 1):
        places = [place for place, (begin, until) in enumerate(offsets) if start <= begin < until <= stop]
        after = 1 + max((place for place, (begin, until) in enumerate(offsets) if begin < until <= stop), default=-1)
        last = number == len(text.learnt)
        if last and stop == len(text.text):  # what the tokenizer adds at the end has no characters
            places += range(after, len(ids))
        elif after < len(ids) and ids[after] in stops:  # the header of the next turn ends this one
            places.append(after)
        ended = _ended(places, ids, offsets, text.text, stops)
        if last and end is not None and (ended is None if ends.append == "auto" else ends.append):
            ended = next((count for count in range(ended or 1, len(places) + 1) if ids[places[count - 1]] == end), None)
            if ended is None:
                after = max(after, 1 + max(places, default=-1))
                ids, labels, found = [*ids[:after], end], [*labels[:after], end], "appended"
        if found != "appended":
            found = "missing" if ended is None else "there"
        for place in places[:ended]:
            labels[place] = ids[place]
    return {"input_ids": ids, "labels": labels}, found


def _ended(places: list[int], ids: list[int], offsets: list[Span], text: str, stops: frozenset[int]) -> int | None:
    """How many of an answer's tokens there are up to the first that ends it, or None if none does."""
    ended = None
    for count in range(len(places), 0, -1):
        begin, until = offsets[places[count - 1]]
        if ids[places[count - 1]] in stops:
            ended = count
        elif text[begin:until].strip():
            break
    return ended


def _tokenise(text: Text, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[Span]]:
    """Token ids and their ranges of characters; no token is on both sides of where an answer begins.

    In generation the prompt is tokenised alone, so a token across its end would never be seen.
    """
    ids, offsets = _pieces(tokenizer, [text.text], special=text.special)
    across = [start for start, _ in text.learnt if any(begin < start < until for begin, until in offsets)]
    if not across:
        return ids, offsets
    cuts = [0, *across, len(text.text)]
    apart = _pieces(tokenizer, [text.text[a:b] for a, b in pairwise(cuts)], special=False)
    inside = [place for place, (begin, until) in enumerate(offsets) if begin < until]
    first, last = inside[0], inside[-1] + 1
    if tokenizer.decode(apart[0]) == tokenizer.decode(ids[first:last]):
        return [*ids[:first], *apart[0], *ids[last:]], [*offsets[:first], *apart[1], *offsets[last:]]
    # a tokenizer that begins each piece with a space: the token across then is the answer's first
    moved = {span: (start, span[1]) for start in across for span in offsets if span[0] < start < span[1]}
    return ids, [moved.get(span, span) for span in offsets]


def _pieces(tokenizer: PreTrainedTokenizerBase, texts: list[str], *, special: bool) -> tuple[list[int], list[Span]]:
    """The tokens of texts one after another, and their ranges in all of them joined."""
    ids: list[int] = []
    offsets: list[Span] = []
    start = 0
    for text in texts:
        encoded = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True, verbose=False)
        ids += encoded["input_ids"]
        offsets += [(start + begin, start + until) for begin, until in encoded["offset_mapping"]]
        start += len(text)
    return ids, offsets
