"""The kinds of values that a config file may have, and what its sections have in common."""

import os
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, model_validator

from lors_cli.data.sources import Source
from lors_cli.errors import nearest
from lors_cli.sparsity.pattern import Pattern


def one_of(kind: str, known: list[str]) -> BeforeValidator:
    """A check that a value is one of the `known`, which the message lists."""

    def check(value: object) -> object:
        if value not in known:
            raise ValueError(f"a {kind}: {', '.join(known)} ({nearest(str(value), known)})")
        return value

    return BeforeValidator(check)


def _pattern(value: object) -> Pattern:
    return value if isinstance(value, Pattern) else Pattern.parse(value)


Sparsity = Annotated[Pattern, BeforeValidator(_pattern), PlainSerializer(str)]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
PathText = Annotated[str, AfterValidator(os.path.expanduser)]
Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """Unknown keys are errors; a parsed config does not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, allow_inf_nan=False)


class Dataset(Section):
    """A hub id, a local file (.jsonl, .json, .parquet, .txt; .gz) or a built-in name; a plain string is `path`."""

    path: str = Field(description="hub id, local file, folder or glob of files, or built-in name")
    name: str | None = Field(None, description="configuration of a hub data set")
    split: str | None = Field(None, description='split of a hub or built-in data set; "train" if left out')
    revision: str | None = Field(None, description="commit or tag of a hub data set")
    data_files: str | None = Field(None, description="files of a hub data set to read instead of all")
    field: str | None = Field(None, description='the text field of each row; "text" if left out')
    limit: Count | None = Field(None, description="rows, from the start")

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: object) -> object:
        return {"path": value} if isinstance(value, str) else value

    def source(self, key: str) -> Source:
        """The rows; `key` is where this stands in the config."""
        return Source(key=key, **self.model_dump(exclude={"format", "streaming"}))
