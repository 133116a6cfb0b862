"""The reference page of the config, written from the schema so that it cannot go stale.

``python -m lors_cli.config.reference > docs/config.md``
"""

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from lors_cli.config.fields import Dataset
from lors_cli.config.schema import Config, Train, TrainingDataset

HEAD = """# Every key of a config file

Made from the schema by `python -m lors_cli.config.reference`. Files are YAML 1.2. Relative paths are relative to the
directory in which `lors` is started. A stage whose section is left out is not part of `lors run`.
`DATASET` is described at the end.
"""


def page() -> str:
    """The whole page, in Markdown."""
    return "\n".join([HEAD, *_tables("", Config), *_tables("DATASET.", TrainingDataset)])


def _tables(prefix: str, model: type[BaseModel]) -> Iterator[str]:
    subsections = []
    yield f"## {prefix.rstrip('.') or 'Top level'}\n"
    if prefix and model.__doc__:
        yield f"{model.__doc__}\n"
    fields = model.model_fields
    if issubclass(model, Train) and model is not Train:
        yield "The keys of `train`, apart from:\n"
        fields = {name: fields[name] for name in model.__annotations__}
    yield "| key | type | default | meaning |\n|---|---|---|---|"
    for name, field in fields.items():
        nested = _nested(field)
        if nested and not issubclass(nested, Dataset):
            subsections.append((f"{prefix}{name}.", nested))
        kind = "DATASET" if nested and issubclass(nested, Dataset) else "section" if nested else _kind(field.annotation)
        yield f"| `{prefix}{name}` | {kind} | {_default(field)} | {(field.description or '').replace('|', ',')} |"
    yield ""
    for inner, nested in subsections:
        yield from _tables(inner, nested)


def _nested(field: FieldInfo) -> type[BaseModel] | None:
    candidates = [field.annotation, *get_args(field.annotation)]
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)


def _kind(annotation: Any) -> str:
    arguments = [argument for argument in get_args(annotation) if argument is not type(None)]
    name = getattr(annotation, "__name__", "")
    if name == "Annotated" or hasattr(annotation, "__metadata__"):
        return _kind(arguments[0])
    if name == "Pattern":
        return "fraction or N:M"
    if annotation in (str, int, float, bool):
        return {str: "text", int: "whole number", float: "number", bool: "true or false"}[annotation]
    if "Literal" in str(annotation)[:16]:
        return " or ".join(f"`{argument}`" for argument in arguments)
    if name == "list":
        return f"list of {_kind(arguments[0])}"
    return " or ".join(_kind(argument) for argument in arguments)


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "required"
    return (
        ""
        if field.default is None
        else f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"
    )


if __name__ == "__main__":
    print(page(), end="")
