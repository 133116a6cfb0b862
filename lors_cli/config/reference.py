"""What an editor and the docs are told about configs, made from the sections so that neither can go stale.

python -m lors_cli.config.reference    # writes docs/config.md and configs/schema.json
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lors_cli.config import recipes
from lors_cli.config.fields import Dataset
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
Entry = tuple[str, str, str, str]  # path, type, default and meaning of a key
DATASET: Schema = Dataset.model_json_schema()


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
    dataset = _entries("DATASET", DATASET, _keys(DATASET), sections)
    return "\n".join([HEAD, *_section("", schema, sections), "## DATASET\n", *_table(dataset)])


def keys(stage: str) -> Iterator[Entry]:
    """The keys of a stage's section and of those in it, or of the top level: each with what `Entry` says."""
    schema = _sections()
    sections = schema["$defs"]
    yield from _nested(stage, sections[stage.capitalize()] if stage else schema, sections, deep=bool(stage))


def _nested(prefix: str, section: Schema, sections: dict[str, Schema], *, deep: bool) -> Iterator[Entry]:
    yield from _entries(prefix, section, section["properties"], sections)
    for path, inner in _inner(prefix, section["properties"], sections) if deep else ():
        yield from _nested(path, inner, sections, deep=deep)


def _inner(prefix: str, keys: Schema, sections: dict[str, Schema]) -> Iterator[tuple[str, Schema]]:
    """The sections that these keys hold, with their paths."""
    for name, key in keys.items():
        inner = [one for one in _references(key) if not one.endswith("Dataset")]
        if inner:  # an entry of a list has the keys of one by itself, and more
            section = {**sections[inner[-1]], "description": sections[inner[0]]["description"]}
            yield f"{prefix}.{name}".strip("."), section


def _section(prefix: str, section: Schema, sections: dict[str, Schema]) -> Iterator[str]:
    """The part of the page about a section, and the parts about those in it."""
    yield f"## {prefix or 'Top level'}\n"
    keys = section["properties"]
    if prefix:
        yield f"{section['description']}\n"
    if prefix == "align":
        yield "The keys of `train`, apart from:\n"
        keys = {name: key for name, key in keys.items() if key != sections["Train"]["properties"].get(name)}
    yield from _table(_entries(prefix, section, keys, sections))
    for path, inner in _inner(prefix, keys, sections):
        yield from _section(path, inner, sections)


def _table(entries: Iterator[Entry]) -> Iterator[str]:
    yield "| key | type | default | meaning |\n|---|---|---|---|"
    for path, kind, default, meaning in entries:
        escaped = meaning.replace("|", "\\|")
        yield f"| `{path}` | {kind} | {default} | {escaped} |"
    yield ""


def _entries(prefix: str, section: Schema, keys: Schema, sections: dict[str, Schema]) -> Iterator[Entry]:
    required = section.get("anyOf", [section])[-1].get("required", [])
    for name, key in keys.items():
        path = f"{prefix}.{name}".strip(".")
        meaning = key.get("description", "")
        default = "required" if name in required else _value(key["default"]) if key.get("default") is not None else ""
        yield path, _type(key), default, meaning
        inner = [one for one in _references(key) if one.endswith("Dataset")]
        if inner:  # keys that a data set has only here; an entry of a list has those of one by itself, and more
            section = sections[inner[-1]]
            own = {name: key for name, key in _keys(section).items() if name not in _keys(DATASET)}
            yield from _entries(path, section, own, sections)


def _keys(section: Schema) -> Schema:
    """The keys of a section, which may also be written in a short form."""
    keys: Schema = section.get("anyOf", [section])[-1]["properties"]
    return keys


def _references(key: Schema) -> list[str]:
    """The names of the sections that a key may hold, by themselves or in a list; none if it holds a value."""
    parts = [part for choice in (key, *key.get("anyOf", [])) for part in (choice, choice.get("items", {}))]
    return [str(part["$ref"]).rpartition("/")[2] for part in parts if "$ref" in part]


def _type(key: Schema) -> str:
    """What a key may hold, in words."""
    if "$ref" in key:
        return "DATASET" if str(key["$ref"]).endswith("Dataset") else "section"
    if key.get("title") == "Sparsity":
        return "fraction or N:M"
    if _references(key.get("items", {})):
        return f"list of {'DATASETs' if 'Dataset' in key['items']['$ref'] else 'sections'}"
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
