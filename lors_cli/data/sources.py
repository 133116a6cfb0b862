"""Rows of a data set: a hub id, a local file, or the built-in text. Local and built-in ones need no network.

.jsonl .jsonl.gz .json .json.gz .parquet     rows with named fields
.txt .txt.gz                                 one row, {"text": the whole file}
"""

import gzip
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from lors_cli.artifacts import digest
from lors_cli.data import builtin
from lors_cli.errors import RequestError, nearest, request_error

Row = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """Where rows come from. `key` is the config's path to it, for error messages."""

    path: str
    key: str
    split: str | None = None
    name: str | None = None
    revision: str | None = None
    data_files: str | None = None
    field: str | None = None
    limit: int | None = None

    def rows(self) -> Iterator[Row]:
        """The rows in order, at most `limit`.

        Raises:
            RequestError: the source is missing or unreadable, or yields no row.

        """
        rows = islice(self._open(), self.limit)
        first = next(rows, None)
        if first is None:
            raise request_error(self.key, "at least one row", f"{self.path}, which is empty", "name another data set")
        yield first
        yield from rows

    def texts(self) -> Iterator[str]:
        """The text field of each row ("text" unless `field` says otherwise).

        Raises:
            RequestError: a row has no such field, or it holds no text.

        """
        field = self.field or "text"
        for number, row in enumerate(self.rows(), 1):
            text = row.get(field)
            if not isinstance(text, str):
                got = f"the fields {sorted(row)}" if text is None else f"{text!r:.60}"
                raise request_error(
                    f"{self.key}.field",
                    f"the field {field!r} with text in every row",
                    f"{self.path}, row {number}: {got}",
                    f"set {self.key}: {{path: ..., field: NAME}}",
                )
            yield text

    def identity(self) -> dict[str, Any]:
        """What determines the rows: the digest of a local file or of the built-in text, or the hub id and revision."""
        facts = {k: v for k, v in vars(self).items() if v is not None and k not in ("key", "path")}
        if self.path in builtin.NAMES:
            return {**facts, "path": self.path, "digest": digest.of_value(list(builtin.texts(self.split)))}
        if (file := Path(self.path).expanduser()).is_file():
            return {**facts, "digest": digest.of_file(file)}
        return {**facts, "path": self.path}

    def _refuse_hub_options(self) -> None:
        """A local file is all "train", as the hub's library has it, and has no other options of hub data sets."""
        given = {"split": self.split, "name": self.name, "revision": self.revision, "data_files": self.data_files}
        for option, value in given.items():
            if value and (option, value) != ("split", "train"):
                got = f"{value!r} for {self.path}"
                raise request_error(f"{self.key}.{option}", "none for a local file", got, f"remove {option}")

    def _open(self) -> Iterator[Row]:
        if self.path in builtin.NAMES:
            if self.split not in (None, *builtin.SPLITS):
                raise request_error(
                    f"{self.key}.split",
                    " or ".join(builtin.SPLITS),
                    repr(self.split),
                    nearest(str(self.split), builtin.SPLITS),
                )
            return ({"text": text} for text in builtin.texts(self.split))
        path = Path(self.path).expanduser()
        suffix = "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix
        if reader := READERS.get(suffix):
            self._refuse_hub_options()
            if not path.is_file():
                raise request_error(self.key, "an existing file", f"{path}, which does not exist", "correct the path")
            return reader(path, self.key)
        if path.exists():
            expected = f"a file ending in {', '.join(READERS)}, a hub id or a built-in name"
            raise request_error(self.key, expected, str(path), "convert or rename the file")
        return _hub_rows(self)


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


def _jsonl(path: Path, key: str) -> Iterator[Row]:
    def parse(file: Any) -> Iterator[Row]:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield _object(line, f"{path}, line {number}", key)

    return _read(path, key, parse)


def _json(path: Path, key: str) -> Iterator[Row]:
    def parse(file: Any) -> Iterator[Row]:
        rows = json.load(file)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise request_error(key, "a JSON list of objects", f"{path}: {type(rows).__name__}", "or use .jsonl")
        yield from rows

    return _read(path, key, parse)


def _object(line: str, where: str, key: str) -> Row:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise request_error(key, "one JSON object a line", f"{where}: {error}", "repair that line") from None
    if not isinstance(row, dict):
        raise request_error(key, "one JSON object a line", f"{where}: {line.strip():.60}", "repair that line")
    return row


def _text(path: Path, key: str) -> Iterator[Row]:
    def parse(file: Any) -> Iterator[Row]:
        if text := file.read():
            yield {"text": text}

    return _read(path, key, parse)


def _parquet(path: Path, key: str) -> Iterator[Row]:
    import pyarrow.parquet
    from pyarrow.lib import ArrowException

    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=1024):
            yield from batch.to_pylist()
    except (ArrowException, OSError) as error:
        raise request_error(key, "a readable parquet file", f"{path}: {error}", "repair the file") from None


READERS: dict[str, Callable[[Path, str], Iterator[Row]]] = {
    ".jsonl": _jsonl,
    ".jsonl.gz": _jsonl,
    ".json": _json,
    ".json.gz": _json,
    ".parquet": _parquet,
    ".txt": _text,
    ".txt.gz": _text,
}


def _hub_rows(source: Source) -> Iterator[Row]:
    """Rows of a hub data set."""
    import datasets

    try:
        rows = datasets.load_dataset(
            source.path,
            source.name,
            split=source.split or "train",
            revision=source.revision,
            data_files=source.data_files,
            # streamed, a limit does not download all of a large set; otherwise it is cached for nodes without a network
            streaming=source.limit is not None and source.data_files is None,
        )
        yield from rows
    except Exception as error:  # offline, not found, gated, network: the library raises many types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise request_error(
            source.key,
            f"a local file, a built-in data set ({', '.join(builtin.NAMES)}), or a hub id (owner/name)",
            f"{source.path!r}, which is no local file and could not be had from the hub: {reason}",
            "correct the path; without a network, download the file elsewhere and give its local path",
        ) from None
