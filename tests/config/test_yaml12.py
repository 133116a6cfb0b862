import math
from typing import Any

import pytest
from yaml import YAMLError

from lors_cli.config.dump import as_yaml
from lors_cli.config.yaml12 import lines, parse

SCALARS: list[tuple[str, Any]] = [
    ("2:4", "2:4"),  # base 60 in YAML 1.1
    ("12:30:45", "12:30:45"),
    ("1e-4", 1e-4),  # a text in PyYAML
    ("1.", 1.0),
    ("+.5", 0.5),
    ("-.inf", -math.inf),
    ("010", 10),  # 8 in YAML 1.1
    ("0o17", 15),
    ("0x1F", 31),
    ("0b1", "0b1"),
    ("1_000", "1_000"),
    ("yes", "yes"),
    ("No", "No"),
    ("on", "on"),
    ("True", True),
    ("false", False),
    ("tRUE", "tRUE"),
    ("~", None),
    ("", None),
    ("Null", None),
    ("nULL", "nULL"),
    ("2026-01-02", "2026-01-02"),
    ("'1'", "1"),
    ("=", "="),
    ("<<", "<<"),
    ("!!str 1", "1"),
]


@pytest.mark.parametrize(("text", "value"), SCALARS)
def test_scalars_are_those_of_the_core_schema(text: str, value: Any) -> None:
    content = parse(f"{{a: {text}, b: x}}")  # inside of braces a plain scalar ends earlier
    assert content == {"a": value, "b": "x"}
    assert type(content["a"]) is type(value)
    assert parse(text) == value


def test_not_a_number() -> None:
    assert math.isnan(parse(".nan"))


def test_anchors_aliases_and_merge_keys() -> None:
    text = "a: &a {x: 1, y: 2}\nb: *a\nc: {<<: *a, y: 3}\n"
    assert parse(text) == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 2}, "c": {"x": 1, "y": 3}}


BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 8)}]\n" for before, name in zip("abcdef", "bcdefg", strict=True)
)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\nb: {c: 2,\n  c: 3}", "'c' is in line 2 already"),
        ("{1: a, '1': b}", "'1' is in line 1 already"),
        ("a: !!python/object:os.system {}", "tag"),
        ("a: !!binary aGk=", "tag"),
        ("a: !!int x", "invalid literal"),
        (BOMB, "more than 100,000 values"),
        ("a: &a [*a]", "an alias contains itself"),
        ("[" * 5000, "nested too deeply"),
        ("a: 1\n---\nb: 1", "another document"),
        ("a: [1", "expected"),
        ("\tb: 1", "cannot start any token"),
    ],
    ids=lambda text: text[:20],
)
def test_refuses(text: str, problem: str) -> None:
    with pytest.raises(YAMLError, match=problem):
        parse(text)


def test_lines_of_keys_and_entries() -> None:
    text = "a: 1\nb:\n  - c\n  - {d: 1,\n     e: 2}\n"
    expected = {"a": 1, "b": 2, "b.0": 3, "b.1": 4, "b.1.d": 4, "b.1.e": 5}
    assert {".".join(path): line for path, line in lines(text).items()} == expected


@pytest.mark.parametrize(
    "value", ["2:4", "on", "1e-4", 'a "b" \\', "é😀", "\x85\u2028\x7f", "", [1, [None, True]], {}, 1e-05]
)
def test_what_is_written_reads_back(value: Any) -> None:
    content = {"section": {"key": value, "other": 1}, "last": 0.1}
    assert parse(as_yaml(content)) == content
