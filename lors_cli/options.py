"""The options of a method, declared beside it: the YAML keys, their checks and the docs follow from that."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Options(BaseModel):
    """The options of a method. Each field has a default, a description with its unit, and its limits."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def option(default: Any, description: str, *, without: str = "has no such option", **limits: Any) -> Any:
    """A field of `Options`; `without` completes "METHOD ..." and says why other methods have nothing to set."""
    return Field(default, description=description, json_schema_extra={"without": without}, **limits)
