"""YAML text to plain data by the rules of version 1.2, where ``2:4`` is a text and ``1e-4`` a number, and the lines.

PyYAML follows version 1.1, by which these are 124 and "1e-4", ``no`` is false and ``010`` is 8. Its loader gets the
core schema of version 1.2 instead. Tags other than the core schema's are refused: only plain data is built.
"""

import re
from typing import Any

import yaml
from yaml import MappingNode, MarkedYAMLError, Node, ScalarNode, SequenceNode, YAMLError

MOST_VALUES = 100_000  # in one text, with what its aliases repeat: an alias of aliases of aliases ... grows fast
KeyPath = tuple[str, ...]

CORE = {  # what a plain scalar is, by the first characters that it can have
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    "merge": (r"<<", ["<"]),  # from version 1.1, but still in use
}
_BUILT = ("null", "bool", "float", "str", "seq", "map")


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[Any]] = {}

    def compose_mapping_node(self, anchor: Any) -> MappingNode:
        """Refuse a key that stands twice in a mapping."""
        node: MappingNode = super().compose_mapping_node(anchor)
        first: dict[str, Node] = {}
        for key, _ in node.value:
            if isinstance(key, ScalarNode) and first.setdefault(key.value, key) is not key:
                problem = f"the key {key.value!r} is in line {_line(first[key.value])} already"
                note = "remove one of the two"
                raise MarkedYAMLError(problem=problem, problem_mark=key.start_mark, note=note)
        return node

    def construct_int(self, node: ScalarNode) -> int:
        """Octal numbers begin with 0o, and a leading 0 means nothing."""
        text = str(self.construct_scalar(node))
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


_Loader.yaml_constructors = {
    **{f"tag:yaml.org,2002:{name}": getattr(_Loader, f"construct_yaml_{name}") for name in _BUILT},
    "tag:yaml.org,2002:int": _Loader.construct_int,
    "tag:yaml.org,2002:merge": _Loader.construct_yaml_str,  # where it is not a key
    None: _Loader.construct_undefined,
}
for _name, (_pattern, _first) in CORE.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(rf"(?:{_pattern})\Z"), _first)


def parse(text: str) -> Any:
    """The content of a YAML document.

    Raises:
        YAMLError: it is not well-formed, has a key twice or a tag, or grows too large.

    """
    return _parse(text)[0]


def lines(text: str) -> dict[KeyPath, int]:
    """The line, counted from 1, of each key of a document that can be parsed; entries of a list by their numbers."""
    return _parse(text)[1]


def _parse(text: str) -> tuple[Any, dict[KeyPath, int]]:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        places: dict[KeyPath, int] = {}
        if node is None:
            return None, places
        _walk(node, (), places)
        return _unshared(loader.construct_document(node)), places
    except RecursionError:
        raise YAMLError("lists or sections are nested too deeply, or an alias contains itself") from None
    except ValueError as error:  # a number with a tag that it does not fit, or one of thousands of digits
        raise YAMLError(str(error)) from None
    finally:
        loader.dispose()


def _unshared(content: Any) -> Any:
    """The same without parts in common, so that a change of what an alias repeats changes only one place."""
    if isinstance(content, dict):
        return {key: _unshared(value) for key, value in content.items()}
    return [_unshared(value) for value in content] if isinstance(content, list) else content


def _walk(node: Node, path: KeyPath, places: dict[KeyPath, int]) -> None:
    """Put the line of everything below `node` into `places`."""
    entries = []
    if isinstance(node, MappingNode):
        entries = [(str(key.value), key, value) for key, value in node.value]
    elif isinstance(node, SequenceNode):
        entries = [(str(number), value, value) for number, value in enumerate(node.value)]
    for name, place, value in entries:
        inner = (*path, name)
        places[inner] = _line(place)
        if len(places) > MOST_VALUES:
            raise YAMLError(f"more than {MOST_VALUES:,} values, with those that its aliases repeat")
        _walk(value, inner, places)


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1
