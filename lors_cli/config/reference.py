"""What an editor and the docs are told about configs, made from the sections so that neither can go stale.

python -m lors_cli.config.reference    # writes docs/config.md and configs/schema.json
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lors_cli.config import recipes
from lors_cli.config.methods import complete
from lors_cli.config.schema import Config

HEAD = """# Every key of a config file

Made from the schema by `python -m lors_cli.config.reference`. Files are YAML 1.2. Relative paths are relative to the
directory in which `lors` is started. A stage whose section is left out is not part of `lors run`. A key with the value
`null` counts as left out, so `KEY=null` on the command line takes back what the file says, or its `recipe`. What
recipes set is not required of a config that names one. If a meaning begins with names of methods, the key is only for
these. A key that the method does not use is refused. `DATASET` is described at the end.
"""
TYPES = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false", "null": ""}
Schema = dict[str, Any]


def json_schema() -> Schema:
    """The JSON schema of a config, with the options of all methods; what recipes set is only required without one."""
    schema = _sections()
    needed: dict[str, Schema] = {}
    for section, _, key in (path.partition(".") for path in recipes.always_sets()):
        required = schema["$defs"][section.capitalize()]["required"]
        if key in required:
            required.remove(key)
            needed.setdefault(section, {"required": []})["required"].append(key)
    condition = {"if": {"not": {"required": ["recipe"]}}, "then": {"properties": needed}}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, **condition}


def _sections() -> Schema:
    return complete(Config).model_json_schema()


def schema_text() -> str:
    """The JSON schema as the text of a file."""
    return json.dumps(json_schema(), indent=1) + "\n"


def page() -> str:
    """The page of all keys, in Markdown."""
    schema = _sections()
    sections = schema["$defs"]
    dataset = _rows("DATASET", sections["Dataset"], _keys(sections["Dataset"]), sections)
    return "\n".join([HEAD, *_section("", schema, sections), "## DATASET\n", *_table(dataset)])


def _section(prefix: str, section: Schema, sections: dict[str, Schema]) -> Iterator[str]:
    """The part of the page about a section, and the parts about those in it."""
    yield f"## {prefix or 'Top level'}\n"
    keys = section["properties"]
    if prefix:
        yield f"{section['description']}\n"
    if prefix == "align":
        yield "The keys of `train`, apart from:\n"
        keys = {name: key for name, key in keys.items() if key != sections["Train"]["properties"].get(name)}
    yield from _table(_rows(prefix, section, keys, sections))
    for name, key in keys.items():
        if (inner := _reference(key)) and not inner.endswith("Dataset"):
            yield from _section(f"{prefix}.{name}".strip("."), sections[inner], sections)


def _table(rows: Iterator[str]) -> Iterator[str]:
    yield "| key | type | default | meaning |\n|---|---|---|---|"
    yield from rows
    yield ""


def _rows(prefix: str, section: Schema, keys: Schema, sections: dict[str, Schema]) -> Iterator[str]:
    required = section.get("anyOf", [section])[-1].get("required", [])
    for name, key in keys.items():
        path = f"{prefix}.{name}".strip(".")
        inner, meaning = _reference(key), key.get("description", "").replace("|", "\\|")
        default = "required" if name in required else _value(key["default"]) if key.get("default") is not None else ""
        yield f"| `{path}` | {_type(key)} | {default} | {meaning} |"
        if inner and inner.endswith("Dataset"):  # keys that a data set has only here
            own = {name: key for name, key in _keys(sections[inner]).items() if name not in _keys(sections["Dataset"])}
            yield from _rows(path, sections[inner], own, sections)


def _keys(section: Schema) -> Schema:
    """The keys of a section, which may also be written in a short form."""
    keys: Schema = section.get("anyOf", [section])[-1]["properties"]
    return keys


def _reference(key: Schema) -> str | None:
    """The name of the section, or of the sections in the list, that a key holds; None if it holds a value."""
    for part in (key, key.get("items", {}), *key.get("anyOf", [])):
        if "$ref" in part:
            return str(part["$ref"]).rpartition("/")[2]
    return None


def _type(key: Schema) -> str:
    """What a key may hold, in words."""
    if inner := _reference(key):
        return "DATASET" if inner.endswith("Dataset") else "list of sections" if "items" in key else "section"
    if key.get("title") == "Sparsity":
        return "fraction or N:M"
    if "anyOf" in key:
        return " or ".join(filter(None, map(_type, key["anyOf"])))
    if values := key.get("enum", [key["const"]] if "const" in key else []):
        return " or ".join(map(_value, values))
    return f"list of {_type(key['items'])}" if "items" in key else TYPES[key["type"]]


def _value(value: Any) -> str:
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


if __name__ == "__main__":
    root = Path(__file__).parents[2]
    (root / "docs/config.md").write_text(page())
    (root / "configs/schema.json").write_text(schema_text())
