"""Several documents in one training example, so that little of a batch is padding.

Best-fit decreasing (Johnson 1974): the longest document first, each into the fullest window that still has room for it.
At most 11/9 of the fewest possible windows.
"""

from bisect import bisect_left, insort
from collections import defaultdict

from lors_cli.data.example import IGNORED, Example


def pack(examples: list[Example], length: int) -> list[Example]:
    """The examples as documents in windows of at most `length` tokens, none of them cut.

    A document's first token has no label in the window: it would be predicted from the document before it.

    Args:
        examples: input_ids and labels of at most `length` tokens each.
        length: tokens per window, at most.

    Returns:
        windows with input_ids, labels and documents, the lengths of the documents in their order; without padding.

    """
    windows: list[list[Example]] = []
    rooms: list[int] = []  # that some window has, in ascending order, each once
    having: dict[int, list[int]] = defaultdict(list)  # the windows by their room
    for example in sorted(examples, key=lambda example: -len(example["input_ids"])):
        size = len(example["input_ids"])
        place = bisect_left(rooms, size)
        if place < len(rooms):
            room = rooms[place]
            window = having[room].pop()
            if not having[room]:
                del rooms[place]
        else:
            room, window = length, len(windows)
            windows.append([])
        windows[window].append(example)
        if left := room - size:
            if not having[left]:
                insort(rooms, left)
            having[left].append(window)
    return [_join(window) for window in windows]


def _join(documents: list[Example]) -> Example:
    return {
        "input_ids": [token for document in documents for token in document["input_ids"]],
        "labels": [label for document in documents for label in (IGNORED, *document["labels"][1:])],
        "documents": [len(document["input_ids"]) for document in documents],
    }
