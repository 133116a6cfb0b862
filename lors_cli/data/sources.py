"""Rows of a data set: a hub id, a local file, or the built-in text. Local and built-in ones need no network.

.jsonl .jsonl.gz .json .json.gz .parquet     rows with named fields
.txt .txt.gz                                 one row, {"text": the whole file}

A glob (data/*.jsonl.gz) or a folder stands for all such files there, its shards, in the order of their names.
"""

import glob
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from lors_cli.artifacts import digest
from lors_cli.data import builtin, hub
from lors_cli.data.readers import READERS, Row, suffix
from lors_cli.errors import nearest, request_error


@dataclass(frozen=True)
class Source(hub.Address):
    """Where rows come from, and the field of each that holds its text."""

    field: str | None = None

    @property
    def is_hub(self) -> bool:
        """Whether the path can only be a hub id."""
        path = Path(self.path).expanduser()
        return not (self.path in builtin.NAMES or self._is_sharded or path.exists() or suffix(path) in READERS)

    @property
    def _is_sharded(self) -> bool:
        path = Path(self.path).expanduser()
        is_glob = glob.has_magic(self.path) and not path.exists()
        return self.path not in builtin.NAMES and (is_glob or path.is_dir())

    def shards(self) -> list["Source"]:
        """The sources, of one file each, of a glob or a folder, without the limit on all of them; else just this one.

        Raises:
            RequestError: a glob or a folder without a file that can be read.

        """
        if not self._is_sharded:
            return [self]
        path = os.path.expanduser(self.path)
        pattern = os.path.join(glob.escape(path), "*") if os.path.isdir(path) else path
        files = sorted(name for name in glob.glob(pattern, recursive=True) if os.path.isfile(name))
        shards = [replace(self, path=name, limit=None) for name in files if suffix(Path(name)) in READERS]
        if not shards:
            expected = f"files ending in {', '.join(READERS)}"
            raise request_error(self.key, expected, f"none in {self.path}", "correct the path, or convert the files")
        return shards

    def rows(self, skip: int = 0) -> Iterator[Row]:
        """The rows in order, at most `limit`, without the first `skip`, which are not parsed where that can be helped.

        Raises:
            RequestError: the source is missing or unreadable, or yields no row at all.

        """
        rows = islice(self.read(skip), None if self.limit is None else max(self.limit - skip, 0))
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
        for number, row in enumerate(self.rows(), 1):
            yield self.text(row, number)

    def text(self, row: Row, number: int) -> str:
        """The text of a row, which `number` names in messages; errors as in `texts`."""
        field = self.field or "text"
        text = row.get(field)
        if not isinstance(text, str):
            got = f"the fields {sorted(row)}" if text is None else f"{text!r:.60}"
            raise request_error(
                f"{self.key}.field",
                f"the field {field!r} with text in every row",
                f"{self.path}, row {number}: {got}",
                f"set {self.key}: {{path: ..., field: NAME}}",
            )
        return text

    def identity(self) -> dict[str, Any]:
        """What determines the rows: the digest of local files or of the built-in text, or the hub id and revision."""
        facts = {k: v for k, v in vars(self).items() if v is not None and k not in ("key", "path")}
        if self.path in builtin.NAMES:
            return {**facts, "path": self.path, "digest": digest.of_value(list(builtin.texts(self.split)))}
        if self._is_sharded:
            files = [Path(shard.path) for shard in self.shards()]
            root = os.path.commonpath([file.parent for file in files])  # elsewhere, the same files are the same rows
            named = {os.path.relpath(file, root): digest.of_file(file) for file in files}
            return {**facts, "shards": len(files), "digest": digest.of_value(named)}
        if (file := Path(self.path).expanduser()).is_file():
            return {**facts, "digest": digest.of_file(file)}
        return {**facts, "path": self.path}

    def _refuse_hub_options(self) -> None:
        """A local file is all "train", as the hub's library has it, and has no other options of hub data sets."""
        given = {"split": self.split, "name": self.name, "revision": self.revision, "data_files": self.data_files}
        for option, value in given.items():
            if value and (option, value) != ("split", "train"):
                got = f"{value!r} for {self.path}"
                raise request_error(f"{self.key}.{option}", f"no {option} for a local file", got, f"remove {option}")

    def read(self, skip: int = 0) -> Iterator[Row]:
        """The rows after the first `skip`, perhaps none, whatever the limit.

        Raises:
            RequestError: the source is missing or unreadable.

        """
        if self.path in builtin.NAMES:
            if self.split not in (None, *builtin.SPLITS):
                raise request_error(
                    f"{self.key}.split",
                    " or ".join(builtin.SPLITS),
                    repr(self.split),
                    nearest(str(self.split), builtin.SPLITS),
                )
            return islice(({"text": text} for text in builtin.texts(self.split)), skip, None)
        path = Path(self.path).expanduser()
        if self._is_sharded:
            return islice(chain.from_iterable(shard.read() for shard in self.shards()), skip, None)
        if reader := READERS.get(suffix(path)):
            self._refuse_hub_options()
            if not path.is_file():
                raise request_error(self.key, "an existing file", f"{path}, which does not exist", "correct the path")
            return reader(path, self.key, skip)
        if path.exists():
            expected = f"a file ending in {', '.join(READERS)}, a folder of them, a hub id or a built-in name"
            raise request_error(self.key, expected, str(path), "convert or rename the file")
        return islice(hub.rows(self), skip, None)
