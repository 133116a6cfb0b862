"""The kinds of values that a config file may have, and what its sections have in common."""

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainSerializer,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from lors_cli.data.sources import Source
from lors_cli.sparsity.pattern import Pattern


@dataclass(frozen=True, eq=False)
class OneOf:
    """One of the `names` that are there when the class of the section is made, such as those of a registry."""

    names: Collection[str] | Callable[[], Collection[str]]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.literal_schema(list(self.names() if callable(self.names) else self.names))


def wrong(key: str, expected: str, remedy: str) -> PydanticCustomError:
    """What the check of a section raises: the `key` in it that is wrong, what was expected, and what to write."""
    facts: dict[str, Any] = {"key": key, "expected": expected, "remedy": remedy}
    return PydanticCustomError("wrong", "{expected}", facts)


def _pattern(value: object) -> Pattern:
    return value if isinstance(value, Pattern) else Pattern.parse(value)


_SPARSITY = [
    {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
    {"type": "string", "pattern": r"^\d+:\d+$"},
]
Sparsity = Annotated[
    Pattern, BeforeValidator(_pattern), PlainSerializer(str), WithJsonSchema({"anyOf": _SPARSITY, "title": "Sparsity"})
]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
PathText = Annotated[str, AfterValidator(os.path.expanduser)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """Unknown keys are errors; a parsed config does not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, allow_inf_nan=False)


class Dataset(Section):
    """The rows of a data set. A plain string is its `path`."""

    path: str = Field(
        description="a hub id, a local file (.jsonl, .json, .parquet or .txt, also with .gz), a folder or a glob of"
        " such files, or the name of a built-in data set"
    )
    name: str | None = Field(None, description="the configuration of a hub data set")
    split: str | None = Field(None, description='the split of a hub or built-in data set; "train" if left out')
    revision: str | None = Field(None, description="the commit or tag of a hub data set")
    data_files: str | None = Field(None, description="the files of a hub data set to read; all if left out")
    field: str | None = Field(None, description='the field of each row that has the text; "text" if left out')
    limit: Count | None = Field(None, description="how many rows to read, from the start; all if left out")

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: object) -> object:
        return {"path": value} if isinstance(value, str) else value

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [{"type": "string"}, handler.resolve_ref_schema(handler(schema))]}

    def source(self, key: str) -> Source:
        """The rows; `key` is where this stands in the config."""
        return Source(key=key, **self.model_dump(exclude={"format", "streaming"}))
