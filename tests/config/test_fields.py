"""What holds for every field of every section: numbers have bounds, and texts can be names."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from lors_cli.config.fields import LONGEST_TEXT
from lors_cli.config.load import load
from lors_cli.config.methods import complete
from lors_cli.config.schema import Config
from lors_cli.errors import RequestError
from lors_cli.search.sweep_file import SweepFile


def numbers(schema: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Each number in a JSON schema, with where it stands."""
    if isinstance(schema, dict):
        if schema.get("type") in ("integer", "number"):
            yield path, schema
        for name, part in schema.items():
            yield from numbers(part, f"{path}/{name}")
    elif isinstance(schema, list):
        for place, part in enumerate(schema):
            yield from numbers(part, f"{path}/{place}")


@pytest.mark.parametrize("kind", [Config, SweepFile])
def test_every_number_has_both_bounds(kind: Any) -> None:
    found = dict(numbers(complete(kind).model_json_schema()))
    assert found
    for path, schema in found.items():
        assert {"minimum", "exclusiveMinimum"} & schema.keys(), f"{path} has no minimum"
        assert {"maximum", "exclusiveMaximum"} & schema.keys(), f"{path} has no maximum"


def refused(tmp_path: Path, *overrides: str) -> str:
    """What is said of a config with these overrides."""
    path = tmp_path / "c.yaml"
    train = "train: {method: lors, dataset: a}\neval: {tasks: [t]}"
    path.write_text(f"model: m\noutput_dir: o\n{train}\n")
    load(path, [])
    with pytest.raises(RequestError) as caught:
        load(path, overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (f"train.max_steps={10**30}", f"a whole number of at least 1 and of at most {10**9}"),
        ("train.max_tokens=1e30", f"of at most {10**15}"),
        ("train.learning_rate=1001", "a number above 0 and of at most 1000"),
        ("train.learning_rate=.inf", "a number above 0"),
        ("train.learning_rate=.nan", "a number above 0"),
        ("train.rank=true", "a whole number of at least 1"),
        ("train.rank=1.5", "a whole number of at least 1"),
        ("train.packing=1", "true or false"),
        ("train.append_eos=1", "'auto', or true or false"),
        ("eval.shots=1001", "of at most 1000"),
        ("seed=4294967296", "below 4294967296"),
        ("seed=-1", "of at least 0"),
        ("output_dir=''", "text of at least one character"),
        ('output_dir="a\\0b"', "without control characters such as U+0000"),
        ('model="a\\nb"', "without control characters such as U+000A"),
        ('eval.tasks=["a\\tb"]', "without control characters such as U+0009"),
        ('train.dataset.path="\\x9f"', "without control characters such as U+009F"),
        (f"model={'x' * (LONGEST_TEXT + 1)}", f"text of at most {LONGEST_TEXT} characters"),
        ("output_dir=~nobody-is-called-so/run", "the home of a user that exists"),
        ("device=meta", "auto, cpu, cuda, cuda:N or mps"),
        ("device=cuda:9999", "auto, cpu, cuda, cuda:N or mps"),
        ("device=xla", "auto, cpu, cuda, cuda:N or mps"),
        ("model=~nobody-is-called-so/model", "the home of a user that exists"),
    ],
)
def test_refuses_by_name(tmp_path: Path, override: str, expected: str) -> None:
    said = refused(tmp_path, override)
    assert f"command line: {override.partition('=')[0]}" in said
    assert expected in said
    assert said.count("expected: ") == 1


@pytest.mark.parametrize("text", ["0.5", "1e-4", "'0.5'", "1"])
def test_numbers_as_people_write_them(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"model: m\noutput_dir: o\ntrain: {{method: lors, dataset: a, learning_rate: {text}}}\n")
    assert load(path, []).train.learning_rate == float(text.strip("'"))  # type: ignore[union-attr]


def test_entries_of_a_list_are_numbers_too() -> None:
    with pytest.raises(ValidationError, match="a number"):
        SweepFile.model_validate({"arms": {"a": {}}, "config": "c", "seeds": [True]})


@pytest.mark.parametrize(("batch", "micro", "divisor"), [(12, 5, 4), (7, 5, 1), (32, 64, 32), (999_983, 999_982, 1)])
def test_the_largest_divisor_is_proposed_at_once(tmp_path: Path, batch: int, micro: int, divisor: int) -> None:
    said = refused(tmp_path, f"train.batch_size={batch}", f"train.micro_batch_size={micro}")
    assert f"write micro_batch_size: {divisor}, or" in said
