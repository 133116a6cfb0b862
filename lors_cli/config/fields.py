"""The kinds of values that a config file may have, and what its sections have in common."""

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetJsonSchemaHandler,
    PlainSerializer,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError

from lors_cli.data.sources import Source
from lors_cli.sparsity.pattern import Pattern


@dataclass(frozen=True)
class Fault:
    """What is wrong with keys of a section that are correct each by itself.

    Attributes:
        key: in the section; nothing for the section itself.
        expected: what was expected.
        remedy: what to write.
        drop: keys of the section one of which may be left out instead.

    """

    key: str
    expected: str
    remedy: str = ""
    drop: tuple[str, ...] = ()


def without_effect(key: str, reason: str, remedy: str = "") -> Fault:
    """The fault of a key that would change nothing."""
    return Fault(key, f"no {key}, because {reason}", remedy, drop=(key,))


def faulty(faults: Iterable[Fault]) -> PydanticCustomError:
    """What the check of a section raises."""
    found = list(faults)
    facts: dict[str, Any] = {"faults": found, "expected": "; ".join(fault.expected for fault in found)}
    return PydanticCustomError("faults", "{expected}", facts)


def wrong(key: str, expected: str, remedy: str) -> PydanticCustomError:
    """The same, of a single fault."""
    return faulty([Fault(key, expected, remedy)])


def _pattern(value: object) -> Pattern:
    return value if isinstance(value, Pattern) else Pattern.parse(value)


_SPARSITY = [
    {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
    {"type": "string", "pattern": r"^\d+:\d+$"},
]
Sparsity = Annotated[
    Pattern, BeforeValidator(_pattern), PlainSerializer(str), WithJsonSchema({"anyOf": _SPARSITY, "title": "Sparsity"})
]


def _device(text: str) -> str:
    if not re.fullmatch(DEVICE, text):
        raise ValueError("auto, cpu, cuda, cuda:N or mps")
    return text


DEVICE = r"auto|cpu|cuda(:\d{1,3})?|mps"
Device = Annotated[str, AfterValidator(_device), WithJsonSchema({"type": "string", "pattern": f"^({DEVICE})$"})]
LONGEST_TEXT = 4000  # a path of Linux has at most 4095 bytes
LONGEST_PROSE = 10**6
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
PathText = Annotated[str, AfterValidator(os.path.expanduser)]
# Every number has both bounds, so that nonsense is named before anything is reserved, counted or waited for.
Count = Annotated[int, Field(ge=1, le=10**9)]
BatchSize = Annotated[int, Field(ge=1, le=10**6)]
SequenceLength = Annotated[int, Field(ge=2, le=10**7)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


ONE, SEVERAL = "one", "several"  # in the places of pydantic's findings; no keys have these names
# Of a key that holds one section or a list of sections: which of the two a value is meant to be.
BY_SHAPE = Discriminator(lambda value: SEVERAL if isinstance(value, list) else ONE)


class AsChoice:
    """Gives such a key the JSON schema of a plain choice."""

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": handler(schema)["oneOf"]}


def check_text(text: str, *, prose: bool = False) -> None:
    """Refuse a text that is the name of nothing; `prose` is for a model to read, and has lines.

    Raises:
        ValueError: it is empty, has control characters, is very long, or names the home of nobody.

    """
    if not text.strip():
        raise ValueError("text of at least one character")
    allowed, longest = ("\n\t", LONGEST_PROSE) if prose else ("", LONGEST_TEXT)
    if control := next((one for one in text if unicodedata.category(one) == "Cc" and one not in allowed), None):
        raise ValueError(f"text without control characters such as U+{ord(control):04X}")
    if len(text) > longest:
        raise ValueError(f"text of at most {longest} characters")
    if not prose and os.path.expanduser(text).startswith("~"):
        raise ValueError("a path whose ~ is the home of a user that exists")


class Section(BaseModel):
    """Unknown keys are errors; null means left out; a parsed config does not change."""

    PROSE: ClassVar[frozenset[str]] = frozenset()  # the keys whose texts are for a model to read
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: object) -> object:
        """So any key of a file can be taken back by an override."""
        if not isinstance(value, dict):
            return value
        return {key: one for key, one in value.items() if one is not None or key not in cls.model_fields}

    @field_validator("*", mode="before")
    @classmethod
    def _plain(cls, value: object, info: ValidationInfo) -> object:
        """Python takes true for 1, and 1 for true; and a text becomes the name of a file, a key or a line of a log."""
        kinds = _kinds(cls.model_fields[str(info.field_name)].annotation)
        numbers, truths = bool({int, float} & kinds), bool in kinds
        for one in value if isinstance(value, list) and Any not in kinds else [value]:
            if numbers and not truths and isinstance(one, bool):
                raise PydanticCustomError("number", "a number")
            if truths and not numbers and isinstance(one, int | float) and not isinstance(one, bool):
                raise PydanticCustomError("truth", "true or false")
            if isinstance(one, str):
                check_text(one, prose=info.field_name in cls.PROSE)
        return value

    @model_validator(mode="after")
    def _check_faults(self) -> Any:
        if faults := list(self.faults()):
            raise faulty(faults)
        return self

    def faults(self) -> Iterator[Fault]:
        """What is wrong with the section as a whole; all of its keys have values of their types."""
        yield from ()

    def changed(self, key: str) -> bool:
        """Whether the section sets the key to something else than its default."""
        return key in self.model_fields_set and getattr(self, key) != type(self).model_fields[key].default


def _kinds(annotation: Any) -> set[Any]:
    """The types that a value may have."""
    return {annotation}.union(*map(_kinds, get_args(annotation)))


class Dataset(Section):
    """The rows of a data set. A plain string is its `path`."""

    path: str = Field(
        description="a hub id, a local file (.jsonl, .json, .parquet, .arrow or .txt, also with .gz, .zst, .bz2 or"
        " .xz), a folder or a glob of such files, or the name of a built-in data set"
    )
    name: str | None = Field(None, description="the configuration of a hub data set, or of a folder with such a card")
    split: str | None = Field(
        None,
        description="the split of a hub or built-in data set, or of a folder, where the words in the names of files"
        ' tell it as on the hub; left out, "train", or of a folder to measure with the only one',
    )
    revision: str | None = Field(None, description="the commit or tag of a hub data set")
    data_files: str | None = Field(None, description="the files of a hub data set to read; all if left out")
    field: str | None = Field(
        None, description='the field of each row that has the text, or a chat\'s turns; "text" if left out'
    )
    limit: Count | None = Field(None, description="how many rows to read, from the start; all if left out")

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: object) -> object:
        given = {"path": value} if isinstance(value, str) else value
        path = given.get("path", "?") if isinstance(given, dict) else getattr(given, "path", None)
        if not (isinstance(path, str) and path):
            remedy = "name one file, a folder, or a pattern such as data/*.jsonl; join several sources into one file"
            raise wrong(
                "path" if isinstance(value, dict) else "", "one data set: a path as text, or {path: ...}", remedy
            )
        return given

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [{"type": "string"}, handler.resolve_ref_schema(handler(schema))]}

    def source(self, key: str) -> Source:
        """The rows; `key` is where this stands in the config."""
        return Source(key=key, **self.model_dump(include={field.name for field in fields(Source)}))


def named_datasets(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, Dataset]]:
    """The data sets of a section and of those in it, with their keys, which begin with `prefix`."""
    for name, value in section:
        key = f"{prefix}.{name}".lstrip(".")
        several = isinstance(value, list)
        for number, one in enumerate(value if several else [value]):
            place = f"{key}[{number}]" if several else key
            if isinstance(one, Dataset):
                yield place, one
            elif isinstance(one, BaseModel):
                yield from named_datasets(one, place)
