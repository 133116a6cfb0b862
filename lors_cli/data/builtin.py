"""Text that every Python already carries: the reference texts of ``pydoc_data.topics`` (some 110,000 tokens).

``test`` is the last twelfth of the paragraphs of each topic; ``train`` is the rest, without any paragraph that ``test``
holds, because topics repeat each other in places.
"""

from collections.abc import Iterator

NAMES = ("python-topics",)
SPLITS = ("train", "test")

HELD_OUT = 12  # one paragraph in so many


def texts(split: str | None) -> Iterator[str]:
    """The texts of `split` ("train" where None), one per topic, in a fixed order."""
    from pydoc_data.topics import topics

    every = [topics[name].strip().split("\n\n") for name in sorted(topics)]
    cuts = [len(paragraphs) - len(paragraphs) // HELD_OUT for paragraphs in every]
    held_out = {paragraph for paragraphs, cut in zip(every, cuts, strict=True) for paragraph in paragraphs[cut:]}
    for paragraphs, cut in zip(every, cuts, strict=True):
        if split == "test":
            part = paragraphs[cut:]
        else:
            part = [paragraph for paragraph in paragraphs[:cut] if paragraph not in held_out]
        if part:
            yield "\n\n".join(part)
