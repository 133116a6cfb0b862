import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from lors_cli.data import builtin
from lors_cli.data.sources import Source
from lors_cli.errors import RequestError

ROWS = [{"text": "one", "n": 1}, {"text": "two\nlines", "n": 2}, {"text": "ümlaut", "n": 3}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def source(path: object, **options: object) -> Source:
    return Source(path=str(path), key="train.dataset", **options)  # type: ignore[arg-type]


def test_every_kind_of_local_file_gives_the_same_rows(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(LINES + "\n")
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write(LINES)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.json", "a.jsonl.gz", "a.parquet"):
        assert list(source(tmp_path / name).rows()) == ROWS
        assert list(source(tmp_path / name, limit=2).texts()) == ["one", "two\nlines"]


def test_text_file_is_one_row(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    assert list(source(tmp_path / "a.txt").texts()) == ["one\n\ntwo\n"]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": \n', "line 2"),
        ("a.jsonl", "[1]\n", "one JSON object a line"),
        ("a.jsonl", "", "at least one row"),
        ("a.json", '{"text": "a"}', "a JSON list"),
        ("a.json", "[", "readable"),
        ("a.jsonl.gz", "not gzip", "readable"),
        ("a.parquet", "not parquet", "parquet"),
        ("a.csv", "a,b", "a file ending in"),
        ("a.jsonl", '{"text": "a"}\n{"txt": "b"}\n', "row 2: the fields \\['txt'\\]"),
        ("a.jsonl", '{"text": 5}\n', "row 1: 5"),
    ],
)
def test_bad_files_say_what_is_wrong(tmp_path: Path, name: str, content: str, expected: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(RequestError, match=expected):
        list(source(tmp_path / name).texts())


def test_a_missing_file_and_an_unreachable_hub_id(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="does not exist"):
        list(source(tmp_path / "no.jsonl").rows())
    with pytest.raises(RequestError, match="could not be had from the hub"):
        list(source("nobody/nothing").rows())


def test_built_in_parts_do_not_overlap() -> None:
    train, test = ([p for t in builtin.texts(split) for p in t.split("\n\n")] for split in ("train", "test"))
    assert list(source("python-topics").texts()) == list(builtin.texts("train"))
    long = {paragraph for paragraph in test if len(paragraph) > 80}
    assert len(long) > 50
    assert not long & set(train)
    with pytest.raises(RequestError, match="train or test"):
        list(source("python-topics", split="tets").rows())


def test_identity_is_the_content(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(LINES)
    before = source(path).identity()
    (tmp_path / "b.jsonl").write_text(LINES)
    assert source(tmp_path / "b.jsonl").identity() == before
    path.write_text(LINES + LINES)
    assert source(path).identity() != before
    assert source(path, limit=1).identity() != source(path).identity()
