"""A config as text that `load` reads back to the same."""

from io import StringIO
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import DoubleQuotedScalarString


def as_yaml(content: dict[str, Any]) -> str:
    """Plain data as a YAML 1.2 document."""
    stream = StringIO()
    yaml = YAML()
    yaml.width = 1000
    yaml.dump(_quoted(content), stream)
    return stream.getvalue()


def _quoted(value: Any) -> Any:
    """The value with its texts in quotes: readers of YAML 1.1 would take 2:4 for a number."""
    if isinstance(value, dict):
        return {key: _quoted(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_quoted(one) for one in value]
    return DoubleQuotedScalarString(value) if isinstance(value, str) else value
