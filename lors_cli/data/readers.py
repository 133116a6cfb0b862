"""The rows of one local file, without the first ones, which are not parsed where that can be helped."""

import gzip
import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from lors_cli.errors import RequestError, request_error

Row = dict[str, Any]


def suffix(path: Path) -> str:
    """The ending of a file name, as `READERS` has it."""
    return "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix


def _open_text(path: Path) -> Any:
    return gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")


def _read(path: Path, key: str, parse: Callable[[Any], Iterator[Row]]) -> Iterator[Row]:
    """The rows that `parse` finds in the opened file; what it cannot read becomes a RequestError."""
    try:
        with _open_text(path) as file:
            yield from parse(file)
    except RequestError:
        raise
    except (ValueError, OSError, EOFError) as error:
        raise request_error(
            key, "a readable file of its kind, in UTF-8", f"{path}: {error}", "repair the file"
        ) from None


def _jsonl(path: Path, key: str, skip: int) -> Iterator[Row]:
    def parse(file: Any) -> Iterator[Row]:
        lines = ((number, line) for number, line in enumerate(file, 1) if line.strip())
        for number, line in islice(lines, skip, None):
            yield _object(line, f"{path}, line {number}", key)

    return _read(path, key, parse)


def _json(path: Path, key: str, skip: int) -> Iterator[Row]:
    def parse(file: Any) -> Iterator[Row]:
        rows = json.load(file)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise request_error(key, "a JSON list of objects", f"{path}: {type(rows).__name__}", "or use .jsonl")
        yield from islice(rows, skip, None)

    return _read(path, key, parse)


def _object(line: str, where: str, key: str) -> Row:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise request_error(key, "one JSON object a line", f"{where}: {error}", "repair that line") from None
    if not isinstance(row, dict):
        raise request_error(key, "one JSON object a line", f"{where}: {line.strip():.60}", "repair that line")
    return row


def _text(path: Path, key: str, skip: int) -> Iterator[Row]:
    def parse(file: Any) -> Iterator[Row]:
        if not skip and (text := file.read()):
            yield {"text": text}

    return _read(path, key, parse)


def _parquet(path: Path, key: str, skip: int) -> Iterator[Row]:
    import pyarrow.parquet
    from pyarrow.lib import ArrowException

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            group, groups = 0, file.num_row_groups
            while group < groups and skip >= file.metadata.row_group(group).num_rows:
                skip -= file.metadata.row_group(group).num_rows
                group += 1
            for batch in file.iter_batches(batch_size=1024, row_groups=range(group, groups)):
                yield from batch.slice(min(skip, len(batch))).to_pylist()
                skip = max(skip - len(batch), 0)
    except (ArrowException, OSError) as error:
        raise request_error(key, "a readable parquet file", f"{path}: {error}", "repair the file") from None


READERS: dict[str, Callable[[Path, str, int], Iterator[Row]]] = {
    ".jsonl": _jsonl,
    ".jsonl.gz": _jsonl,
    ".json": _json,
    ".json.gz": _json,
    ".parquet": _parquet,
    ".txt": _text,
    ".txt.gz": _text,
}
