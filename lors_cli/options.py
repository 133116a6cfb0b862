"""The options of a method, declared in its registry row: YAML keys, their checks, the docs and the schema follow."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, core_schema

_NONE: Any = object()


class Options(BaseModel):
    """The options of a method. Each field is made by `option`; a field that methods share is inherited."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments by which the method's function or module takes the options."""
        return dict(self)

    def faults(self) -> Iterator[tuple[str, str, str]]:
        """What does not fit together, though each value is correct: the key, what was expected, and what to write."""
        yield from ()


def option(
    default: Any,
    description: str,
    *,
    without: str = "does not have this option",
    off: Any = _NONE,
    after: str | None = None,
    **limits: Any,
) -> Any:
    """A field of `Options`.

    Args:
        default: the value if a config leaves it out; ``...`` if every config of the method has to give one.
        description: what it does, with its unit.
        without: completes "METHOD ..." and says why a method without this option has nothing to set.
        off: what a config may say nevertheless for a method without it, because it means "not at all". If there is no
            such value, a config of another method must not have the key.
        after: the key of the section behind which it is listed, in the docs and in recorded configs. If left out, it
            comes after the option before it, or at the end of the section.
        limits: pydantic's, such as ``ge=0``.

    """
    facts = {"without": without, "after": after} | ({} if off is _NONE else {"off": off})
    return Field(default, description=description, json_schema_extra=facts, **limits)


def facts(field: FieldInfo) -> dict[str, Any]:
    """What a field carries besides its value: `without`, `after`, and `off` if there is one."""
    told: Any = field.json_schema_extra
    return dict(told)


@dataclass(frozen=True, eq=False)
class OneOf:
    """One of the `names` that are there when the class of the section is made, such as those of a registry."""

    names: Collection[str] | Callable[[], Collection[str]]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.literal_schema(list(self.names() if callable(self.names) else self.names))
