import bz2
import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest

from lors_cli.data import readers
from lors_cli.errors import RequestError

ROWS: list[dict[str, Any]] = [{"text": f"ümlaut\n{n}", "n": n} for n in range(5)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def read(path: Path, skip: int = 0) -> list[dict[str, Any]]:
    return list(readers.rows(path, "train.dataset", skip))


@pytest.mark.parametrize("name", ["c4-train.00000-of-01024.json.gz", "a.json", "a.jsonl", "a.NDJSON", "a.jsonl.zst"])
@pytest.mark.parametrize("packed", [bytes, gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize(
    "text",
    [
        LINES,
        json.dumps(ROWS),
        json.dumps(ROWS, indent=1),
        "\ufeff" + LINES,
        "\ufeff" + json.dumps(ROWS),
        LINES.replace("\n", "\r\n"),
        "\n" + LINES.replace("\n", "\n  \n"),
        LINES.rstrip("\n"),
    ],
    ids=["lines", "list", "indented", "bom", "bom-list", "crlf", "blank", "no-end"],
)
def test_rows_are_told_by_the_content(tmp_path: Path, name: str, packed: Any, text: str) -> None:
    (tmp_path / name).write_bytes(packed(text.encode()))
    assert read(tmp_path / name) == ROWS
    assert read(tmp_path / name, 3) == ROWS[3:]


def test_tables_are_told_by_their_first_bytes(tmp_path: Path) -> None:
    table = pyarrow.Table.from_pylist(ROWS)
    pyarrow.parquet.write_table(table, tmp_path / "parquet.json", row_group_size=2)
    for name, kind in (("file.arrow", pyarrow.ipc.new_file), ("stream.arrow", pyarrow.ipc.new_stream)):
        with kind(str(tmp_path / name), table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    (tmp_path / "a.jsonl.zst").write_bytes(pyarrow.Codec("zstd").compress(LINES.encode(), asbytes=True))
    for name in ("parquet.json", "file.arrow", "stream.arrow", "a.jsonl.zst"):
        for skip in range(6):
            assert read(tmp_path / name, skip) == ROWS[skip:]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", LINES.encode("utf-16"), "line 1: it is UTF-16"),
        ("a.json", LINES.encode("utf-16-le"), "line 1: a zero byte"),
        ("a.jsonl", LINES.encode("utf-32"), "line 1: it is UTF-32"),
        ("a.txt", "one\ntwo".encode("utf-16-le"), "a zero byte"),
        ("a.txt", LINES.encode(), "JSON rows.*\n.*the ending .jsonl"),
        ("a.txt", json.dumps(ROWS).encode(), "JSON rows.*\n.*the ending .jsonl"),
        ("a.jsonl", LINES.encode("latin-1"), "line 1: 'utf-8' codec"),
        ("a.txt", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        ("a.txt", b"\n<!DOCTYPE html><p>Not found", "a page in HTML"),
        ("a.jsonl", b"<html>\n", "line 1: it is a page in HTML"),
        ("a.parquet", b"<HTML>\n", "a page in HTML"),
        ("a.jsonl", b"PK\x03\x04....", "a zip archive"),
        (
            "a.jsonl",
            b'{"text": "a", "n": 1}\n{"text": "b", "text": "c"}\n',
            "line 2: the key 'text' stands there twice",
        ),
        ("a.json", b'[{"text": "a"}, {"text": "b", "m": {"r": 1, "r": 2}}]', "the key 'r' stands there twice"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "b"},\n', "line 2: Extra data"),
        ("a.jsonl", b'{"text": "a"}{"text": "b"}\n', "line 1: Extra data"),
        ("a.jsonl", b'{"text": "a"}\n["b"]\n', 'line 2: \\["b"\\]'),
        ("a.json", b'[{"text": "a"},\n]', "line [12]"),
        ("a.json", b'[{"text": "a"}, "b"]', "row 2: 'b'"),
        ("a.json", b'[["a"]]\n[["b"]]\n', "Extra data"),
        ("a.jsonl", b"[" * 100_000, "recursion"),
        ("a.jsonl", b'{"n": ' + b"9" * 5000 + b"}", "line 1: .*digits"),
        (
            "a.json",
            b'{\n "version": 1,\n "data": [\n  {"text": "a"}\n ]\n}',
            'over several lines.*\n.*jq -c \'.\\["data"\\]',
        ),
        ("a.json", b'{\n "messages": [{"role": "user"}]\n}', "jq -c [.] FILE"),
        ("a.json", b'{\n "text": ["a", "b"]\n}', "over several lines, with the keys \\['text'\\]"),
        (
            "a.jsonl",
            rb'{"text": "a"}' + b"\n\n" + rb'{"id": 1, "text": "b \ud83d"}',
            "line 3: .ud83d, a lone surrogate",
        ),
        ("a.json", rb'[{"text": "a"}, {"messages": [{"content": "\udE00"}]}]', "row 2: .ude00, a lone surrogate"),
        ("a.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)[:-12], "a.jsonl.gz: "),
        ("a.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)[:12] + b"garbage", "a.jsonl.gz: "),
        ("a.jsonl.zst", pyarrow.Codec("zstd").compress(LINES.encode(), asbytes=True)[:-9], "a.jsonl.zst: "),
        ("a.parquet.gz", gzip.compress(b"PAR1", mtime=0), "decompress it"),
        ("a.parquet", b"", "a.parquet: "),
        ("a.arrow", b"ARROW1 and nothing", "a.arrow: "),
    ],
)
def test_what_cannot_be_read_is_named_with_its_reason(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RequestError, match=expected):
        read(tmp_path / name)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.gz", "a.txt.gz"])
def test_a_small_file_that_holds_much_is_not_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(readers, "LONGEST", 1000)
    monkeypatch.setattr(readers, "MOST_CHARACTERS", 2000)
    content = {"a.jsonl.gz": '{"text": "%s"}' % ("a" * 9**6), "a.json.gz": "[" + "{},\n" * 9**6}.get(name, "a\n" * 9**6)
    (tmp_path / name).write_bytes(gzip.compress(content.encode(), mtime=0))
    with pytest.raises(RequestError, match=rf"{name}.*more than [12],000 "):
        read(tmp_path / name)
    (tmp_path / name).write_bytes(gzip.compress(LINES.encode(), mtime=0))
    monkeypatch.setattr(readers, "_json", memory_is_full)
    monkeypatch.setattr(readers, "_text", memory_is_full)
    with pytest.raises(RequestError, match=rf"{name}: .*memory"):
        read(tmp_path / name)


def memory_is_full(*_: Any) -> Any:
    raise MemoryError


def test_pairs_of_surrogates_are_whole_characters(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "\\ud83d\\ude00 \\\\ud83d"}\n')
    assert read(tmp_path / "a.jsonl") == [{"text": "\N{GRINNING FACE} \\ud83d"}]


def test_one_object_on_one_line_is_one_row(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"messages": [{"role": "user"}]}')
    assert read(tmp_path / "a.json") == [{"messages": [{"role": "user"}]}]


def test_a_text_is_one_row_without_the_mark_that_it_begins_with(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n")
    assert read(tmp_path / "a.txt") == [{"text": "one\ntwo\nthree\n"}]
    assert read(tmp_path / "a.txt", 1) == []
    (tmp_path / "a.txt").write_bytes(b"")
    assert read(tmp_path / "a.txt") == []


def test_damaged_cells_of_a_table_name_their_row(tmp_path: Path) -> None:
    offsets = pyarrow.py_buffer(b"".join(n.to_bytes(4, "little") for n in (0, 1, 2, 3)))
    column = pyarrow.Array.from_buffers(pyarrow.string(), 3, [None, offsets, pyarrow.py_buffer(b"ab\xff")])
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    with pytest.raises(RequestError, match="row 3: 'utf-8' codec"):
        read(tmp_path / "a.parquet")
    twice = pyarrow.table([[1], [2]], names=["text", "text"])
    pyarrow.parquet.write_table(twice, tmp_path / "a.parquet")
    with pytest.raises(RequestError, match="two columns have the name 'text'"):
        read(tmp_path / "a.parquet")
