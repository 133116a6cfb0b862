"""The rows of one local file, told by its content, without the first ones, which are not parsed where possible.

JSON lines, or a list of objects, whatever the ending says; parquet and arrow by their first bytes; any other .txt is
one row, {"text": the whole file}. A compressed file is known by its first bytes too, not by its name.
"""

import bz2
import codecs
import gzip
import io
import json
import lzma
import re
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from lors_cli.artifacts.files import each_key_once
from lors_cli.errors import RequestError, request_error

Row = dict[str, Any]


def _open(path: Path) -> Any:
    return path.open("rb")


def _open_zstd(path: Path) -> Any:
    import pyarrow

    return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd"))


ENDINGS = {
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "text",
}
# Files that hold rows too, but are not read: they are refused where they would be left out of a folder.
UNREADABLE = (".csv", ".tsv", ".xlsx", ".pkl", ".npy", ".h5", ".avro", ".orc", ".zip", ".tar", ".tgz", ".7z")
COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
OPENERS: dict[bytes, Callable[[Path], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"\x28\xb5\x2f\xfd": _open_zstd,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}
PAGE = (
    "a page in HTML",
    "download the file itself; a page that is to be learnt can be a row {text: ...} of a .jsonl file",
)
# The first bytes, in lower case, of what rows are not read from, and what to do.
NO_TEXT = {
    codecs.BOM_UTF32_LE: ("UTF-32", "convert it, for example with iconv -t UTF-8"),
    codecs.BOM_UTF16_LE: ("UTF-16", "convert it, for example with iconv -t UTF-8"),
    codecs.BOM_UTF16_BE: ("UTF-16", "convert it, for example with iconv -t UTF-8"),
    b"pk\x03\x04": ("a zip archive", "unpack it"),
    b"version https://git-lfs": ("a Git LFS pointer to the file, not the file", "fetch it with git lfs pull"),
    b"<!doctype html": PAGE,
    b"<html": PAGE,
}
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
KEYS_ONCE = each_key_once("the key {!r} stands there twice")
TO_LINES = "write each row on a line of its own"
LONGEST = 2**28  # bytes of a line
MOST_CHARACTERS = 2**30  # of what is read as a whole; a small compressed file can hold much more


def ending(path: Path) -> str:
    """The ending of a file's name in lower case, without that of a compression."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return "".join((suffixes[:-1] if suffixes[-1:] and suffixes[-1] in COMPRESSED else suffixes)[-1:])


def rows(path: Path, key: str, skip: int = 0) -> Iterator[Row]:
    """The rows of the file `path` after the first `skip`; `key` is where the config names it.

    Raises:
        RequestError: the file, or one of the rows, cannot be read.

    """
    try:
        with path.open("rb") as file:
            start = file.read(64)
        kind = {b"PAR1": "parquet", b"ARRO": "arrow"}.get(start[:4]) or ENDINGS[ending(path)]
        compressed = next((opener for magic, opener in OPENERS.items() if start.startswith(magic)), None)
        if kind in ("parquet", "arrow"):
            _check_start(start, path, key)
            if compressed:
                raise _unreadable(path, key, f"{kind} in a compressed file", "decompress it")
            yield from _batches(path, key, skip, _parquet if kind == "parquet" else _arrow)
            return
        with (compressed or _open)(path) as file:
            yield from (_json if kind == "json" else _text)(file, path, key, skip)
    except RequestError:
        raise
    except (ValueError, OSError, EOFError, lzma.LZMAError) as error:
        raise _unreadable(path, key, str(error)) from None
    except MemoryError:
        raise _unreadable(path, key, "a row of it does not fit into memory", TO_LINES) from None


def _unreadable(where: object, key: str, got: str, remedy: str = "repair the file") -> RequestError:
    return request_error(key, "a readable file of its kind, in UTF-8", f"{where}: {got}", remedy)


def _lines(file: Any, path: Path, key: str) -> Iterator[tuple[int, str]]:
    """The lines, with their numbers, of a file of text."""
    number = 0
    while raw := file.readline(LONGEST + 1):
        if len(raw) > LONGEST:
            raise _unreadable(f"{path}, line {number + 1}", key, f"more than {LONGEST:,} bytes", TO_LINES)
        for line in raw.splitlines():  # those of old Macs end in \r alone
            number += 1
            yield number, _decoded(line, f"{path}, line {number}", key, first=number == 1)


def _joined(lines: Iterator[tuple[int, str]], path: Path, key: str) -> str:
    """All of the lines as one text."""
    kept, size = list[str](), 0
    for _, line in lines:
        kept.append(line)
        size += len(line)
        if size > MOST_CHARACTERS:
            raise _unreadable(path, key, f"more than {MOST_CHARACTERS:,} characters of one value", TO_LINES)
    return "\n".join(kept)


def _decoded(content: bytes, where: str, key: str, *, first: bool) -> str:
    """`content` as text, without the mark that a file may begin with; `first` if it begins one."""
    if first:
        _check_start(content[:64], where, key)
    if b"\0" in content:
        raise _unreadable(where, key, "a zero byte: it is binary, or UTF-16", "convert it to UTF-8")
    try:
        return content.removeprefix(codecs.BOM_UTF8 if first else b"").decode()
    except UnicodeDecodeError as error:
        raise _unreadable(where, key, str(error), "convert it to UTF-8, or repair it there") from None


def _check_start(start: bytes, where: object, key: str) -> None:
    """Refuse a file by its first bytes."""
    begin = start.removeprefix(codecs.BOM_UTF8).lstrip(b" \t\r\n").lower()
    for magic, (what, remedy) in NO_TEXT.items():
        if begin.startswith(magic):
            raise _unreadable(where, key, f"it is {what}", remedy)


def _json(file: Any, path: Path, key: str, skip: int) -> Iterator[Row]:
    lines = ((number, line) for number, line in _lines(file, path, key) if line.strip())
    first = next(lines, None)
    if first is None:
        return
    if first[1].lstrip().startswith("["):
        yield from islice(_list(_joined(chain([first], lines), path, key), path, key), skip, None)
        return
    for number, line in islice(chain([first], lines), skip, None):
        if line.strip() == "{":
            raise _over_lines(line, lines, f"{path}, line {number}", key)
        yield _object(line, f"{path}, line {number}", key)


def _over_lines(line: str, lines: Iterator[tuple[int, str]], where: str, key: str) -> RequestError:
    """The error of an object that is written over several lines, with how to get rows out of it if it has some."""
    try:
        whole = json.loads(_joined(chain([(0, line)], lines), Path(where), key))
        got = f"one object, over several lines, with the keys {list(whole)}"
        remedy = from_inside(whole)
    except (ValueError, RecursionError):
        remedy, got = "", "an object over several lines"
    remedy = remedy or f"{TO_LINES}: jq -c . FILE > rows.jsonl"
    return request_error(key, "one JSON object a line, or a list of objects", f"{where}: {got}", remedy)


def from_inside(row: Row) -> str:
    """How to get the rows out of an object that has them in a list, as in {"data": [...]}; nothing for other rows."""
    for name, held in row.items():
        objects = held if isinstance(held, list) and all(isinstance(item, dict) for item in held) else []
        if objects and not any(key in item for item in objects for key in ("role", "from")):  # turns of one row
            return f"{TO_LINES}: jq -c '.[{json.dumps(name)}][]' FILE > rows.jsonl"
    return ""


def _list(text: str, path: Path, key: str) -> Iterator[Row]:
    expected = "a list of JSON objects, or one JSON object a line"
    try:
        items = json.loads(text, object_pairs_hook=KEYS_ONCE)
    except (ValueError, RecursionError) as error:
        raise request_error(key, expected, f"{path}: {error}", "repair the file") from None
    doubtful = SURROGATE.search(text)
    for number, item in enumerate(items, 1):
        where = f"{path}, row {number}"
        if not isinstance(item, dict):
            raise request_error(key, expected, f"{where}: {item!r:.60}", "make an object of it, such as {text: ...}")
        yield _whole_characters(item, where, key) if doubtful else item


def _object(line: str, where: str, key: str) -> Row:
    try:
        row = json.loads(line, object_pairs_hook=KEYS_ONCE)
    except (ValueError, RecursionError) as error:
        raise request_error(key, "one JSON object a line", f"{where}: {error}", "repair that line") from None
    if not isinstance(row, dict):
        got = f"{where}: {line.strip():.60}"
        raise request_error(key, "one JSON object a line", got, "repair that line")
    return _whole_characters(row, where, key) if SURROGATE.search(line) else row


def _whole_characters(row: Row, where: str, key: str) -> Row:
    """`row`, unless it has half of a UTF-16 pair, which JSON can write and no tokenizer can read."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(str(error.object)[error.start]):04x}"
        expected = "text whose characters are whole"
        raise request_error(key, expected, f"{where}: {half}, a lone surrogate", "repair or remove that row") from None
    return row


def _text(file: Any, path: Path, key: str, skip: int) -> Iterator[Row]:
    content = file.read(MOST_CHARACTERS + 1)
    if len(content) > MOST_CHARACTERS:
        raise _unreadable(path, key, f"more than {MOST_CHARACTERS:,} bytes of one text", "split it into several files")
    text = _decoded(content, str(path), key, first=True).replace("\r\n", "\n").replace("\r", "\n")
    try:
        first = json.loads(text.lstrip().partition("\n")[0])
    except (ValueError, RecursionError):
        first = None
    if isinstance(first[0] if isinstance(first, list) and first else first, dict):
        raise _unreadable(path, key, "its first line is JSON rows, not text", "give it the ending .jsonl")
    if text and not skip:
        yield {"text": text}


def _batches(path: Path, key: str, skip: int, read: Callable[[Path, int], Iterator[Any]]) -> Iterator[Row]:
    """The rows of the record batches that `read` gives, from the row `skip` on."""
    from pyarrow.lib import ArrowException

    number = skip
    try:
        for batch in read(path, skip):
            names = batch.schema.names
            if twice := {name for name in names if names.count(name) > 1}:
                raise _unreadable(path, key, f"two columns have the name {min(twice)!r}")
            try:
                rows = batch.to_pylist()
            except UnicodeDecodeError:
                whole = 0
                for whole in range(len(batch)):
                    try:
                        batch.slice(whole, 1).to_pylist()
                    except UnicodeDecodeError as error:
                        raise _unreadable(path, key, f"row {number + whole + 1}: {error}", "repair that row") from None
                raise
            yield from rows
            number += len(rows)
    except (ArrowException, OSError) as error:
        raise _unreadable(path, key, str(error)) from None


def _parquet(path: Path, skip: int) -> Iterator[Any]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        group, groups = 0, file.num_row_groups
        while group < groups and skip >= file.metadata.row_group(group).num_rows:
            skip -= file.metadata.row_group(group).num_rows
            group += 1
        for batch in file.iter_batches(batch_size=1024, row_groups=range(group, groups)):
            yield batch.slice(min(skip, len(batch)))
            skip = max(skip - len(batch), 0)


def _arrow(path: Path, skip: int) -> Iterator[Any]:
    import pyarrow.ipc

    with pyarrow.OSFile(str(path)) as file:
        is_file = file.read(6) == b"ARROW1"
        file.seek(0)
        if is_file:
            reader = pyarrow.ipc.open_file(file)
            batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
        else:
            batches = iter(pyarrow.ipc.open_stream(file))
        for batch in batches:
            yield batch.slice(min(skip, len(batch)))
            skip = max(skip - len(batch), 0)
