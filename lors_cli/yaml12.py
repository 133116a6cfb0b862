"""YAML text to plain data by the rules of version 1.2, where ``2:4`` is a text and ``1e-4`` a number, and the lines.

PyYAML follows version 1.1, by which these are 124 and "1e-4", ``no`` is false and ``010`` is 8. Its loader gets the
core schema of version 1.2 instead. Tags other than the core schema's are refused: only plain data is built. A text that
would be large or deep is refused while its nodes are counted, before anything is built of them.
"""

import re
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

import yaml
from yaml import AliasEvent, MappingNode, MarkedYAMLError, Node, ScalarNode, SequenceNode, YAMLError
from yaml.reader import ReaderError

MOST_CHARACTERS = 2**20  # of a text, and of the scalars in it with those that its aliases repeat
MOST_VALUES = 20_000  # with those that aliases repeat: an alias of aliases of aliases ... grows fast
DEEPEST = 50  # lists and sections in each other
MOST_DIGITS = 100  # of a whole number; Python takes none of more than 4,300
OPENED = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")  # what the shell has opened, as for <(program)
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


class Bounded(yaml.SafeLoader):
    """A loader that stops at the limits above, at nodes of another form than plain data, and at unpaired surrogates."""

    def __init__(self, text: str) -> None:
        if len(text) > MOST_CHARACTERS:
            raise YAMLError(f"more than {MOST_CHARACTERS:,} characters")
        try:
            super().__init__(text)
        except ReaderError as error:
            place = f"line {text.count(chr(10), 0, error.position) + 1}"
            raise YAMLError(f"the character U+{error.character:04X} in {place}, which YAML does not allow") from None
        self._depth = self._values = self._characters = 0
        self._sizes: dict[str, tuple[int, int]] = {}  # of the node of each anchor: values and characters

    def compose_node(self, parent: Any, index: Any) -> Node | None:
        """Count a node, and all below it."""
        event = self.peek_event()
        anchor, values, characters = event.anchor, self._values, self._characters
        self._depth += 1
        if self._depth > DEEPEST:
            _refuse(f"lists or sections are nested too deeply: more than {DEEPEST} in each other", event)
        if isinstance(event, AliasEvent) and anchor in self.anchors:
            if anchor not in self._sizes:
                _refuse("an alias contains itself", event)
            self._add(event, *self._sizes[anchor])
        elif isinstance(event, yaml.ScalarEvent):
            self._add(event, 1, len(event.value))
        else:
            self._add(event, 1, 0)
        node: Node | None = super().compose_node(parent, index)
        self._depth -= 1
        if anchor is not None:
            self._sizes[anchor] = (self._values - values, self._characters - characters)
        return node

    def _add(self, event: yaml.NodeEvent, values: int, characters: int) -> None:
        self._values += values
        self._characters += characters
        for count, most, name in (
            (self._values, MOST_VALUES, "values"),
            (self._characters, MOST_CHARACTERS, "characters"),
        ):
            if count > most:
                _refuse(f"more than {most:,} {name}, with those that its aliases repeat", event)

    def compose_scalar_node(self, anchor: Any) -> ScalarNode:
        """Join the pairs of surrogates that JSON writes for a character; refuse long whole numbers."""
        node: ScalarNode = super().compose_scalar_node(anchor)
        try:
            node.value = node.value.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            _refuse("a text has one half of a surrogate pair, which is not a character", node)
        if node.tag.endswith(":int") and len(node.value) > MOST_DIGITS:
            _refuse(f"a whole number of more than {MOST_DIGITS} digits", node)
        return node


class _Loader(Bounded):
    yaml_implicit_resolvers: dict[str, list[Any]] = {}

    def compose_scalar_node(self, anchor: Any) -> ScalarNode:
        """Refuse a value that its tag does not fit."""
        node = super().compose_scalar_node(anchor)
        name = node.tag.rpartition(":")[2]
        if name in CORE and not re.fullmatch(CORE[name][0], node.value):
            _refuse(f"{node.value[:60]!r} is not of the type {name}", node)
        return node

    def compose_mapping_node(self, anchor: Any) -> MappingNode:
        """Refuse a key that stands twice in a mapping, and one that is not a scalar."""
        node: MappingNode = super().compose_mapping_node(anchor)
        first: dict[str, Node] = {}
        for key, _ in node.value:
            if not isinstance(key, ScalarNode):
                problem = "a key is a list or a section"
                raise MarkedYAMLError(problem=problem, problem_mark=key.start_mark, note="write the key as text")
            if first.setdefault(key.value, key) is not key:
                problem = f"the key {key.value!r} is in line {_line(first[key.value])} already"
                note = "join the two: <<: [*a, *b]" if key.tag.endswith(":merge") else "remove one of the two"
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


def _refuse(problem: str, place: Any) -> NoReturn:
    raise MarkedYAMLError(problem=problem, problem_mark=place.start_mark)


def read_text(path: Path) -> str:
    """The text of a YAML file, of which no more is read than the limit; a pipe that the shell has opened is one, too.

    Raises:
        OSError: it cannot be read, or is not a file.
        UnicodeDecodeError: it is not in UTF-8.
        YAMLError: it is too large.

    """
    given = path.as_posix().startswith(OPENED)
    if not given and path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(f"{path} is not a file")  # opening a pipe waits for somebody who writes to it
    with path.open("rb") as file:
        content = file.read(4 * MOST_CHARACTERS + 4)
    text = content.decode("utf-8-sig")
    if len(text) > MOST_CHARACTERS:
        raise YAMLError(f"more than {MOST_CHARACTERS:,} characters")
    return text


def parse(text: str) -> Any:
    """The content of a YAML document.

    Raises:
        YAMLError: it is not well-formed, has a key twice or a tag, or would grow beyond the limits of this module.

    """
    return _unshared(_parse(text)[0])


def lines(text: str) -> dict[KeyPath, int]:
    """The line, counted from 1, of each key of a document that can be parsed; entries of a list by their numbers."""
    return dict(_parse(text)[1])


@lru_cache(maxsize=16)  # a sweep has the same text for each of its runs
def _parse(text: str) -> tuple[Any, dict[KeyPath, int]]:
    loader, places = _Loader(text), dict[KeyPath, int]()
    try:
        node = loader.get_single_node()
    except (ValueError, OverflowError) as error:  # of PyYAML, which asks Python for the character "\UFFFFFFFF"
        raise MarkedYAMLError(problem=str(error), problem_mark=loader.get_mark()) from None
    finally:
        loader.dispose()
    if node is None:
        return None, places
    _walk(node, (), places)
    return loader.construct_document(node), places


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
        _walk(value, inner, places)


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1
