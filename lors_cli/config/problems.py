"""What pydantic finds wrong with a config, in the words of this project: the key, what was expected, what to write."""

import json
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from lors_cli.config import recipes
from lors_cli.config.fields import ONE, SEVERAL, Fault
from lors_cli.config.methods import section_of
from lors_cli.errors import Problem, close, nearest, removal, sequence

CLI = "command line"
LIMITS = {  # of a number, in a JSON schema
    "minimum": "of at least",
    "exclusiveMinimum": "above",
    "maximum": "of at most",
    "exclusiveMaximum": "below",
}


@dataclass(frozen=True)
class _Place:
    """A key of a config: its parts, its value, the class of its section, and its field there if it is a known one."""

    parts: list[str]
    value: Any
    section: type[BaseModel]
    field: FieldInfo | None

    @property
    def key(self) -> str:
        return ".".join(self.parts) or "CONFIG"


def problems(model: type[BaseModel], raw: dict[str, Any], origins: Mapping[str, str]) -> list[Problem]:
    """Everything that is wrong with `raw` as a `model`; none if nothing is. `origins` are as in `load.checked`.

    What spans several keys is only found once each key has a value of its type. So what is wrong is left out, and the
    rest is looked at again.
    """
    found: dict[str, Problem] = {}
    content = deepcopy(raw)
    for _ in range(2):
        known, details = list(found), _details(model, content)
        for problem in [one for detail in details for one in _problems_of(model, content, detail, origins)]:
            if not any(f"{key}.".startswith(f"{problem.key}.") for key in known):
                found[problem.key] = problem
        for detail in details:
            if detail["type"] not in ("missing", "faults"):
                _leave_out(content, _follow(model, content, [*map(str, detail["loc"])]).parts)
    return list(found.values())


def _details(model: type[BaseModel], raw: dict[str, Any]) -> list[ErrorDetails]:
    try:
        model.model_validate(raw)
    except ValidationError as error:
        return [one for one in error.errors() if one["type"] != "default_factory_not_called"]  # as another key is wrong
    return []


def _leave_out(content: Any, parts: list[str]) -> None:
    """Remove a key; of an entry of a list, the key of the list."""
    for part in parts[:-1]:
        if not isinstance(content.get(part), dict):
            parts = [part]
            break
        content = content[part]
    content.pop(parts[-1] if parts else "", None)


def _problems_of(
    model: type[BaseModel], raw: dict[str, Any], detail: ErrorDetails, origins: Mapping[str, str]
) -> Iterator[Problem]:
    """One of pydantic's findings, which may be several of ours."""
    names = [*map(str, detail["loc"])]
    if detail["type"] != "faults":
        yield _problem(model, _follow(model, raw, names), detail)
        return
    for fault in detail["ctx"]["faults"]:
        place = _follow(model, raw, split_key(raw, ".".join(filter(None, [*names, fault.key]))))
        yield Problem(place.key, fault.expected, _got(place.value), _remedy(fault, names, origins))


def split_key(raw: Any, key: str) -> list[str]:
    """The names that a dotted key of `raw` consists of; those that are there may have dots themselves, as a_0.5 has."""
    if not key:
        return []
    entries = enumerate(raw) if isinstance(raw, list) else raw.items() if isinstance(raw, dict) else ()
    inside: dict[str, Any] = {str(name): value for name, value in entries}
    name = max((one for one in inside if f"{key}.".startswith(f"{one}.")), key=len, default=key.partition(".")[0])
    return [name, *split_key(inside.get(name), key[len(name) + 1 :])]


def _problem(model: type[BaseModel], place: _Place, detail: ErrorDetails) -> Problem:
    kind, key, got = detail["type"], place.key, _got(place.value)
    name, known = place.parts[-1] if place.parts else "", list(place.section.model_fields)
    if kind == "extra_forbidden":
        return Problem(key, "a known key", repr(name), _known_key(model, name, known))
    if kind == "invalid_key":
        return Problem(key, "keys that are text", f"the key {detail['input']!r}", "correct the key, or remove it")
    if kind == "missing":
        remedy = f"add {name}: to the file, or {key}=... to the command"
        return Problem(key, f"{_words_of(place)}: the key is required", "nothing", remedy)
    if kind == "value_error":
        return Problem(key, str(detail["ctx"]["error"]), got, f"write such a value for {name}")
    schema = _schema(place)
    expected, values = words(schema), _values(schema)
    if kind == "model_type":
        return Problem(key, expected, got, _as_section(key, place))
    if isinstance(place.value, str) and expected.startswith("a list"):
        return Problem(key, expected, got, f"write {key}: [{place.value}]")
    field = place.field
    if values and (close(str(place.value), values) or expected == sequence(map(repr, values))):
        more = "; `lors methods` describes each" if field and "`lors methods`" in str(field.description) else ""
        return Problem(key, expected, got, nearest(str(place.value), values) + more)
    remedy = "write such a value" if name.isdigit() else f"write such a value for {name}"
    if (
        field is not None
        and not field.is_required()
        and name in known
        and not field.default_factory
        and field.default is not None
    ):
        remedy += f", or leave it out, which means {json.dumps(field.get_default(), default=str)}"
    return Problem(key, expected, got, remedy)


def _got(value: Any) -> str:
    if isinstance(value, dict):
        return f"the keys {sorted(map(str, value))}" if value else "an empty section"
    return "nothing" if value is None else repr(value)[:200]


def _remedy(fault: Fault, names: list[str], origins: Mapping[str, str]) -> str:
    """What to write; a key that the file has can be dropped by the command, too."""
    keys = [".".join([*names, name]) for name in fault.drop]
    here = [key for key in keys if origins.get(key) != CLI]
    if 0 < len(here) < len(keys):  # what the command says was meant
        keys = here
    ours = [key for key in keys if origins.get(key, "").startswith(recipes.SETS)]
    own = [key for key in keys if key not in ours]
    remedies = [removal(*own) if own else "", *(f"write {key}: null, against the recipe" for key in ours)]
    return ", or ".join(filter(None, [*remedies, fault.remedy]))


def _known_key(model: type[BaseModel], name: str, known: list[str]) -> str:
    """The key that was meant: one that is spelt alike, one of another section, or one whose initials these are."""
    if close(name, known):
        return nearest(name, known)
    elsewhere = [path for path in paths(model) if path.rpartition(".")[2] == name]
    initials = [key for key in known if "".join(word[0] for word in key.split("_")) == name]
    if elsewhere or initials:
        return f"did you mean {sequence(map(repr, initials or elsewhere))}?"
    return nearest(name, known)


def paths(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The dotted keys of a model and of the sections in it, without those of lists."""
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        if (section := section_of(field)) and not _is_list(field):
            yield from paths(section, f"{prefix}{name}.")


def _is_list(field: FieldInfo) -> bool:
    return getattr(field.annotation, "__origin__", None) in (list, dict)


def _as_section(key: str, place: _Place) -> str:
    """How to write the section that a key holds."""
    section = section_of(place.field) if place.field else None
    required = [name for name, field in section.model_fields.items() if field.is_required()] if section else []
    values = json.dumps(place.value) if isinstance(place.value, str) else "..."
    if section and len(required) < 2:
        return f"write {key}: {{{f'{required[0]}: {values}' if required else ''}}}"
    return f"write the keys of {key} below it, or between braces"


def _follow(model: type[BaseModel], raw: dict[str, Any], names: list[str]) -> _Place:
    """Where the `names` that are keys lead; the others are pydantic's, for the alternatives of a type."""
    parts: list[str] = []
    value: Any = raw
    section = inside = model
    field = None
    for name in names:
        if name in (ONE, SEVERAL):
            inside = (field and section_of(field, several=name == SEVERAL)) or section
            continue
        if isinstance(value, list) and name.isdigit():
            value = value[int(name)]
        elif isinstance(value, dict):
            section, field = inside, inside.model_fields.get(name)
            value = value.get(name)
            inside = (field and section_of(field)) or section
        else:
            break
        parts.append(name)
    return _Place(parts, value, section, field)


def _schema(place: _Place) -> dict[str, Any]:
    """The JSON schema of the values that a key may have; of the entries, for an entry of a list."""
    if place.field is None:
        return {}
    whole = _schema_of(place.section)
    name = next(name for name, field in place.section.model_fields.items() if field is place.field)
    for branch in (whole, *whole.get("anyOf", [])):
        if name in branch.get("properties", {}):
            schema: dict[str, Any] = branch["properties"][name]
            break
    if place.parts[-1].isdigit():
        schema = next((one["items"] for one in (schema, *schema.get("anyOf", [])) if "items" in one), {})
    return schema


@lru_cache(maxsize=64)
def _schema_of(section: type[BaseModel]) -> dict[str, Any]:
    return TypeAdapter(section).json_schema()


def _words_of(place: _Place) -> str:
    return words(_schema(place))


def words(schema: dict[str, Any]) -> str:
    """What a JSON schema allows, apart from null."""
    if "anyOf" in schema:
        return ", or ".join(dict.fromkeys(words(one) for one in schema["anyOf"] if one.get("type") != "null"))
    if values := _values(schema):
        return sequence(map(repr, values))
    if "$ref" in schema:
        return "a section"
    kind = schema.get("type")
    if kind in ("integer", "number"):
        limits = [f"{text} {schema[key]}" for key, text in LIMITS.items() if key in schema]
        return " ".join(["a whole number" if kind == "integer" else "a number", " and ".join(limits)]).strip()
    if kind == "array":
        least = f" of at least {schema['minItems']}" if schema.get("minItems") else ""
        return f"a list{least}, each entry {words(schema['items'])}"
    return {"boolean": "true or false", "string": "text", "object": "keys with values"}.get(str(kind), "another value")


def _values(schema: dict[str, Any]) -> list[str]:
    """The values of an enumeration."""
    if "anyOf" in schema:
        return [value for one in schema["anyOf"] for value in _values(one)]
    return [str(value) for value in schema.get("enum", [schema["const"]] if "const" in schema else [])]
