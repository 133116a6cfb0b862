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


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.json.gz", "a.parquet", "*.jsonl"])
def test_every_kind_of_local_file_gives_the_same_rows_and_can_skip_some(tmp_path: Path, name: str) -> None:
    rows = [{"text": f"ümlaut\n{n}", "n": n} for n in range(10)]
    lines, whole = "\n\n".join(json.dumps(row) for row in rows) + "\n", json.dumps(rows)
    for ending, text in (("jsonl", lines), ("json", whole)):
        (tmp_path / f"a.{ending}").write_text(text)
        (tmp_path / f"a.{ending}.gz").write_bytes(gzip.compress(text.encode()))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=3)
    assert list(source(tmp_path / name, limit=2).texts()) == [row["text"] for row in rows[:2]]
    for skip in range(11):
        assert list(source(tmp_path / name).rows(skip)) == rows[skip:]
        assert list(source(tmp_path / name, limit=7).rows(skip)) == rows[skip:7]


def test_skipped_lines_are_not_parsed_but_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('not JSON\n\n{"n": 1}\n{"n": \n')
    rows = source(tmp_path / "a.jsonl").rows(1)
    assert next(rows) == {"n": 1}
    with pytest.raises(RequestError, match="line 4"):
        next(rows)


def test_a_glob_and_a_folder_are_all_their_files_in_order(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write(json.dumps(ROWS[1]) + "\n")
    (tmp_path / "c.jsonl").write_text(json.dumps(ROWS[2]) + "\n")
    (tmp_path / "a.json").write_text(json.dumps(ROWS[:1]))
    (tmp_path / "d.jsonl").write_text("")  # an empty shard is none of many
    (tmp_path / "README.md").write_text("no rows")
    (tmp_path / ".hidden.jsonl").write_text("no rows")
    for path in (tmp_path, tmp_path / "*", tmp_path / "[a-d].*", f"{tmp_path.parent}/**/{tmp_path.name}/?.*"):
        whole = source(path, field="text")
        assert [Path(shard.path).name for shard in whole.shards()] == ["a.json", "b.jsonl.gz", "c.jsonl", "d.jsonl"]
        assert all((shard.key, shard.field) == ("train.dataset", "text") for shard in whole.shards())
        assert list(whole.rows()) == ROWS
        assert list(source(path, limit=2).rows()) == ROWS[:2]
    single = source(tmp_path / "c.jsonl", limit=5)
    assert single.shards() == [single]
    with pytest.raises(RequestError, match="no revision for a local file"):
        next(source(tmp_path, revision="main").rows())
    for path in (tmp_path / "x*.jsonl", tmp_path / "*.md"):
        with pytest.raises(RequestError, match="files ending in"):
            next(source(path).rows())


def test_signs_of_a_glob_in_the_name_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a[1].jsonl").write_text(LINES)
    assert list(source(tmp_path / "a[1].jsonl").rows()) == ROWS


def test_text_file_is_one_row(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    assert list(source(tmp_path / "a.txt").texts()) == ["one\n\ntwo\n"]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": \n', "line 2"),
        ("a.jsonl", "[1]\n", "one JSON object a line"),
        ("a.jsonl", "", "at least one row"),
        ("a.json", "[", "a list of JSON objects"),
        ("a.jsonl.gz", "not gzip", "line 1"),
        ("a.parquet", "not parquet", "parquet"),
        ("a.csv", "a,b", "files ending in"),
        ("a.jsonl", '{"txt": "b", "n": 1}\n', "field: txt"),
        ("a.jsonl", '{"text": "a"}\n{"text": null}\n', "row 2: None"),
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
    with pytest.raises(RequestError, match="could not be fetched from the hub"):
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


def test_identity_of_shards_is_their_names_and_contents(tmp_path: Path) -> None:
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
        for name in "abc":
            (tmp_path / folder / f"{name}.jsonl").write_text(LINES)
    before = source(tmp_path / "one").identity()
    assert source(tmp_path / "one" / "*.jsonl").identity() == source(tmp_path / "other").identity() == before
    (tmp_path / "one" / "b.jsonl").write_text(LINES + LINES)
    changed = source(tmp_path / "one").identity()
    (tmp_path / "other" / "b.jsonl").rename(tmp_path / "other" / "d.jsonl")
    renamed = source(tmp_path / "other").identity()
    assert before != changed != renamed != before
    assert json.loads(json.dumps(changed)) == changed


def test_what_can_only_be_a_hub_id(tmp_path: Path) -> None:
    assert source("owner/name").is_hub
    for path in ("python-topics", "no.jsonl", "data/*", tmp_path):
        assert not source(path).is_hub
