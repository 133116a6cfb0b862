import pytest

from lors_cli.artifacts.public import text_without_places, without_places


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/home/someone/data/c4.jsonl.gz", "c4.jsonl.gz"),
        ("~/models/secret plans", "secret plans"),
        ("/data/parts/", "parts"),
        ("runs/quickstart", "runs/quickstart"),
        ("owner/name", "owner/name"),
        ("2:4", "2:4"),
        ("score = |W| / sum", "score = |W| / sum"),
        ("/", "/"),
        (0.5, 0.5),
        (None, None),
        ({"models": ["dense", "/a/b"], "/x/y": {"path": "/x/y"}}, {"models": ["dense", "b"], "y": {"path": "y"}}),
        (
            {"command": "/venv/bin/lors run ~/c.yaml output_dir=/x/y model=owner/name eval.models=[dense,/a/b,./c/d]"},
            {"command": "lors run c.yaml output_dir=y model=owner/name eval.models=[dense,b,./c/d]"},
        ),
    ],
)
def test_only_the_last_part_of_an_absolute_path_is_left(value: object, expected: object) -> None:
    assert without_places(value) == expected


def test_a_text_loses_the_paths_that_its_data_have() -> None:
    data = {"models": {"/a/b": {"path": "/a/b"}, "/a/b/c": {}}, "dataset": "/a/b/c/d.jsonl"}
    assert text_without_places("| /a/b | /a/b/c | from /a/b/c/d.jsonl, 1/2", data) == "| b | c | from d.jsonl, 1/2"
