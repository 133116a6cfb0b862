"""What does not fit in a training of elastic ranks."""

from collections.abc import Iterator, Sequence

from lors_cli import adapters
from lors_cli.config.fields import Fault, without_effect


def faults(rank: int, ranks: Sequence[int] | None, method: str, *, sampled: bool) -> Iterator[Fault]:
    """What does not fit the elastic `ranks` of a training with adapters of `rank`; `sampled`: how is said."""
    if ranks is None:
        if sampled:
            yield without_effect("elastic_sampling", "there are no elastic_ranks")
    elif not adapters.METHODS[method].low_rank:
        yield without_effect("elastic_ranks", f"the update of {method} is not a low-rank product")
    elif max(ranks) != rank or len(set(ranks)) < len(ranks):
        expected = f"ranks that differ, the largest of them rank, {rank}"
        yield Fault("elastic_ranks", expected, f"write rank: {max(ranks)}, and each rank once")
