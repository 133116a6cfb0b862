import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from yaml import YAMLError

from lors_cli.config.dump import as_yaml
from lors_cli.yaml12 import Bounded, lines, parse, read_text

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


def bomb(first: str, again: str) -> str:
    """Eight levels, each of which repeats the one before nine times: 43 million copies of the first."""
    names = zip("abcdefgh", "bcdefghi", strict=True)
    more = (f"{name}: &{name} " + again.replace("*", ",".join([f"*{before}"] * 9)) for before, name in names)
    return "\n".join([f"a: &a {first}", *more])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\nb: {c: 2,\n  c: 3}", "'c' is in line 2 already"),
        ("{1: a, '1': b}", "'1' is in line 1 already"),
        ("a: !!python/object:os.system {}", "tag"),
        ("a: !!binary aGk=", "tag"),
        ("a: !!int x", "'x' is not of the type int"),
        (bomb("[1, 1]", "[*]"), "more than 20,000 values, with those"),
        (bomb("{x: 1}", "{<<: [*]}"), "more than 20,000 values, with those"),
        (f"a: &a {'x' * 10_000}\nb: [{'*a, ' * 200}]", "more than 1,048,576 characters, with those"),
        (f"a: &a {'x' * 10_000}\nb: {{{''.join(f'{i}: *a, ' for i in range(200))}}}", "more than 1,048,576 characters"),
        ("x" * 2**20 + "x", "more than 1,048,576 characters"),
        ("\n".join("- 1" for _ in range(20_001)), "more than 20,000 values"),
        ("".join(f"{' ' * depth}a:\n" for depth in range(60)), "nested too deeply"),
        (f"a: {'9' * 5000}", "more than 100 digits"),
        (f"a: 0x{'f' * 5000}", "more than 100 digits"),
        ("a: !!bool x", "'x' is not of the type bool"),
        ("a: !!float ''", "'' is not of the type float"),
        ("a: !!timestamp 2026-01-02", "tag"),
        ("a: !!set {x}", "tag"),
        ("? [1]\n: 2", "a key is a list or a section"),
        ("a: &a {x: 1}\nb: {<<: *a, <<: *a}", "join the two"),
        ("a: b\0c", r"U\+0000 in line 1"),
        ("a: 1\nb: '\x07'", r"U\+0007 in line 2"),
        (r'a: "\ud800"', "surrogate"),
        (r'a: "\UFFFFFFFF"', "too large"),
        ("a: &a [*a]", "an alias contains itself"),
        ("[" * 5000, "nested too deeply"),
        ("a: 1\n---\nb: 1", "another document"),
        ("a: [1", "expected"),
        ("\tb: 1", "cannot start any token"),
    ],
    ids=lambda text: ascii(text[:20]),
)
def test_refuses(text: str, problem: str) -> None:
    with pytest.raises(YAMLError, match=problem):
        parse(text)


def test_limits_hold_for_other_loaders_too() -> None:
    task = "task: !function utils.load\ndate: 2026-01-02\nuntil: ['\\n']\n"  # YAML 1.1 and a tag of lm-eval
    yaml.compose(task, Bounded)
    deep, long = "a: " + "[\n" * 60, f"a: {'9' * 5000}"
    for text, problem in ((bomb("[1, 1]", "[*]"), "values"), (deep, "deeply"), (long, "digits")):
        with pytest.raises(YAMLError, match=problem):
            yaml.compose(task + text, Bounded)


def test_pairs_of_surrogates_are_what_json_means() -> None:
    assert parse(json.dumps({"a": "é😀"})) == {"a": "é😀"}


def test_what_can_be_read(tmp_path: Path) -> None:
    pipe, large = tmp_path / "pipe", tmp_path / "large"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="not a file"):  # opening it would wait for a writer
        read_text(pipe)
    with large.open("wb") as file:
        file.truncate(2**40)  # takes no room
    with pytest.raises(YAMLError, match="more than 1,048,576 characters"):
        read_text(large)
    ours, theirs = os.pipe()
    os.write(theirs, b"a: 1")
    os.close(theirs)
    assert read_text(Path(f"/dev/fd/{ours}")) == "a: 1"  # as <(program) gives
    os.close(ours)


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
