"""Rows of a data set: a hub id, local files, or the built-in text. Local and built-in ones need no network.

.jsonl .json .parquet .arrow     rows with named fields
.txt                             one row, {"text": the whole file}

A glob (data/*.jsonl.gz) or a folder stands for such files there, its shards, in the order of their names: see `local`.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from lors_cli.artifacts import digest, inputs
from lors_cli.data import builtin, hub, local, readers
from lors_cli.data.readers import Row
from lors_cli.errors import nearest, request_error

ROWS = 256  # between two looks at the file that they are read from


@dataclass(frozen=True)
class Source(hub.Address):
    """Where rows come from, and the field of each that holds its text."""

    field: str | None = None

    @property
    def section(self) -> str:
        """The part of the config that names it, where the keys beside it are."""
        return self.key.rpartition(".")[0]

    @property
    def is_hub(self) -> bool:
        """Whether the path can only be a hub id."""
        return not (self.path in builtin.NAMES or local.is_local(self.path))

    @property
    def _is_one(self) -> bool:
        """Whether the path is that of a single file, or stands for no files."""
        path = Path(self.path).expanduser()
        return self.path in builtin.NAMES or self.is_hub or not (path.is_dir() or local.is_glob(self.path))

    def shards(self) -> list["Source"]:
        """The sources, of one file each, of a glob or a folder, without the limit on all of them; else just this one.

        Raises:
            RequestError: there are none, they cannot be read, or it cannot be told which are of the split.

        """
        if self._is_one:
            return [self]
        return [replace(self, path=str(file), limit=None, split=None, name=None) for file in local.files(self)]

    def rows(self, skip: int = 0) -> Iterator[Row]:
        """The rows in order, at most `limit`, without the first `skip`, which are not parsed where that can be helped.

        Raises:
            RequestError: the source is missing or unreadable, or yields no row at all.

        """
        return (row for _, _, row in self.located(skip))

    def located(self, skip: int = 0) -> Iterator[tuple["Source", int, Row]]:
        """The rows, each with the shard that it is from and its number there, for messages; else as `rows`."""
        every: Iterator[tuple[Source, int, Row]]
        if self._is_one:
            every = ((self, number, row) for number, row in enumerate(self.read(skip), skip + 1))
        else:
            numbered = ((shard, *pair) for shard in self.shards() for pair in enumerate(shard.read(), 1))
            every = islice(numbered, skip, None)
        rows = islice(every, None if self.limit is None else max(self.limit - skip, 0))
        first = next(rows, None)
        if first is None:
            if skip:
                return
            raise request_error(self.key, "at least one row", f"{self.path}, which is empty", "name another data set")
        yield first
        yield from rows

    def texts(self) -> Iterator[str]:
        """The text field of each row ("text" unless `field` says otherwise).

        Raises:
            RequestError: a row has no such field, or it holds no text.

        """
        for shard, number, row in self.located():
            yield shard.text(row, number)

    def text(self, row: Row, number: int) -> str:
        """The text of a row, which `number` names in messages; errors as in `texts`."""
        field = self.field or "text"
        text = row.get(field)
        if isinstance(text, str):
            return text
        where = f"{self.path}, row {number}"
        expected = f"the field {field!r} with text in every row"
        if field in row:
            raise request_error(f"{self.key}.field", expected, f"{where}: {text!r:.60}", "repair or remove that row")
        others = [name for name, value in row.items() if isinstance(value, str)]
        remedy = f"set {self.key}: {{path: ..., field: {others[0] if len(others) == 1 else 'NAME'}}}"
        raise request_error(f"{self.key}.field", expected, f"{where}: the fields {sorted(row)}", remedy)

    def identity(self) -> dict[str, Any]:
        """What determines the rows: the digest of local files or of the built-in text, or the hub id and revision."""
        facts = {k: v for k, v in vars(self).items() if v is not None and k not in ("key", "path")}
        if self.path in builtin.NAMES:
            return {**facts, "path": self.path, "digest": digest.of_value(list(builtin.texts(self.split)))}
        if not self._is_one:
            files = local.files(self)
            root = os.path.commonpath([file.parent for file in files])  # elsewhere, the same files are the same rows
            named = {os.path.relpath(file, root): inputs.of_file(file) for file in files}
            inputs.listed(self.path, lambda: [str(file) for file in local.files(self)])
            return {**facts, "shards": len(files), "digest": digest.of_value(named)}
        if (file := Path(self.path).expanduser()).is_file():
            return {**facts, "digest": inputs.of_file(file)}
        return {**facts, "path": self.path}

    def read(self, skip: int = 0) -> Iterator[Row]:
        """The rows after the first `skip`, perhaps none, whatever the limit.

        Raises:
            RequestError: the source is missing or unreadable.

        """
        if self.path in builtin.NAMES:
            local.refuse(self, "name", "revision", "data_files")
            if self.split not in (None, *builtin.SPLITS):
                raise request_error(
                    f"{self.key}.split",
                    " or ".join(builtin.SPLITS),
                    repr(self.split),
                    nearest(str(self.split), builtin.SPLITS),
                )
            return islice(({"text": text} for text in builtin.texts(self.split)), skip, None)
        if self.is_hub:
            return islice(hub.rows(self), skip, None)
        if self._is_one:
            return self._steady(local.files(self)[0], skip)
        return islice(chain.from_iterable(shard.read() for shard in self.shards()), skip, None)

    def _steady(self, file: Path, skip: int) -> Iterator[Row]:
        """The rows of one file, which stays what it was when the stage began to read it, also while it is read."""

        def begun() -> tuple[Iterator[Row], list[Row]]:
            rows = readers.rows(file, self.key, skip)
            return rows, list(islice(rows, 1))

        rows, first = inputs.steadily([file], begun)
        yield from first
        for number, row in enumerate(rows):
            if number % ROWS == 0:
                inputs.vouch(file)
            yield row
        inputs.vouch(file)
