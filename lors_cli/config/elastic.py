"""Elastic ranks: what does not fit in their training, and the search among them at the merge."""

from collections.abc import Iterator, Sequence
from typing import Annotated

from pydantic import Field

from lors_cli import adapters
from lors_cli.config.evaluation import Perplexity
from lors_cli.config.fields import Count, Fault, without_effect


class RankSearch(Perplexity):
    """A search for the rank of each linear by the held-out loss of the merged model: hill climbing, as SQFT has it.

    It starts from the middle one of train.elastic_ranks everywhere. In each turn it tries neighbours of the best ranks
    so far, in which a few linears have others.
    """

    samples: Count = Field(128, description="how many windows or rows are measured at most, from the start")
    evaluations: Annotated[int, Field(ge=2, le=10**6)] = Field(
        30, description="how many times the loss is measured at most, that of the start included"
    )
    neighbours: Count = Field(5, description="how many neighbours are measured before the best of them is moved to")
    changes: Count = Field(3, description="how many linears of a neighbour have another rank, at most")


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
