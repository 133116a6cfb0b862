"""Text that every Python already carries: the reference texts of ``pydoc_data.topics`` (some 110,000 tokens).

``train`` and ``test`` do not overlap: of each topic, the first 19 in 20 of its paragraphs are train, the rest test.
"""

from collections.abc import Iterator

NAMES = ("python-topics",)
SPLITS = ("train", "test")


def texts(split: str | None) -> Iterator[str]:
    """The texts of `split` ("train" where None), in a fixed order."""
    from pydoc_data.topics import topics

    for name in sorted(topics):
        paragraphs = topics[name].strip().split("\n\n")
        cut = len(paragraphs) * 19 // 20
        part = paragraphs[cut:] if split == "test" else paragraphs[:cut]
        if part:
            yield "\n\n".join(part)
