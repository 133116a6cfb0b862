"""The data sets that a training names: one, or several with weights, a mixture."""

import os
from collections.abc import Iterator
from typing import Annotated

from pydantic import AfterValidator, Field, Tag, model_validator

from lors_cli.config.fields import BY_SHAPE, ONE, SEVERAL, AsChoice, Dataset, Fault, without_effect, wrong
from lors_cli.data import formats
from lors_cli.options import OneOf


class TrainingDataset(Dataset):
    """The rows to train on. A plain string is its `path`."""

    format: Annotated[str, OneOf(formats.TRAINING)] | None = Field(
        None,
        description="alpaca, chat, completion or text, recognised by the fields of the first row if left out; or"
        " openhermes or openorca: a chat of which no row may lack a field of that data set",
    )
    streaming: bool = Field(
        False,
        description="whether the shards (of a glob, a folder or a hub id) are read during training, not all at once",
    )
    learn_prompt: bool = Field(
        False, description="whether the prompts of alpaca, chat and completion are learnt too, not the answers alone"
    )

    def faults(self) -> Iterator[Fault]:
        """A prompt where there is none."""
        if self.learn_prompt and self.format == "text":
            yield without_effect("learn_prompt", "rows of text have no prompts: every token is learnt")


class MixedDataset(TrainingDataset):
    """One source of a mixture."""

    weight: Annotated[float, Field(gt=0, le=10**9)] = Field(
        description="in a list of data sets, a mixture: the share of this one in the samples, relative to the others'"
    )

    @model_validator(mode="before")
    @classmethod
    def _weighted(cls, value: object) -> object:
        if isinstance(value, str):
            remedy = f"write {{path: {value}, weight: 1}}: sources are not joined, but drawn from by their weights"
            raise wrong("", "a source with a weight, {path: ..., weight: ...}", remedy)
        return value


def _alone(value: TrainingDataset | list[MixedDataset]) -> TrainingDataset | list[MixedDataset]:
    """A list of one is that data set."""
    if isinstance(value, list) and len(value) == 1:
        return TrainingDataset(**value[0].model_dump(exclude={"weight"}, exclude_unset=True))
    return value


TrainingData = Annotated[
    Annotated[TrainingDataset, Tag(ONE)] | Annotated[list[MixedDataset], Field(min_length=1), Tag(SEVERAL)],
    BY_SHAPE,
    AsChoice(),
    AfterValidator(_alone),
]


class Mixing:
    """What a section says of its `dataset`, which may be a mixture."""

    @property
    def sources(self) -> dict[str, TrainingDataset]:
        """The data sets to train on by their keys in the section: one, or those of a mixture."""
        dataset: TrainingData = getattr(self, "dataset")  # noqa: B009 - a field of the section
        if isinstance(dataset, list):
            return {f"dataset[{number}]": one for number, one in enumerate(dataset)}
        return {"dataset": dataset}

    @property
    def weights(self) -> list[float]:
        """Those of the mixture's sources; none of a single data set."""
        return [source.weight for source in self.sources.values() if isinstance(source, MixedDataset)]

    def mixture_faults(self) -> Iterator[Fault]:
        """A source that stands twice in a mixture."""
        known: list[dict[str, object]] = []
        for number, source in enumerate(self.sources.values()):
            path = os.path.normpath(os.path.expanduser(source.path))
            facts = {**source.model_dump(exclude={"weight"}), "path": path}
            if facts in known:
                first = f"dataset[{known.index(facts)}]"
                remedy = f"give {first} the sum of both weights, and remove this entry"
                yield Fault(f"dataset.{number}", f"another source than {first}", remedy)
            known.append(facts)
