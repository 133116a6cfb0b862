"""Reading a data set row by row from a place that can be written down and gone back to."""

from collections.abc import Iterator
from typing import Any, Protocol

from lors_cli.data import hub
from lors_cli.data.readers import Row
from lors_cli.data.sources import Source

Place = dict[str, Any]  # as JSON; the empty one is the start
Located = tuple[Source, int, Row]  # a row with the shard that it is from and its number there, for messages


class Cursor(Protocol):
    """The rows from a place on, perhaps none."""

    def __iter__(self) -> Iterator[Located]:
        """The rows; to be called once."""

    def place(self) -> Place:
        """The place of the next row, once one has been read."""


def open_cursor(source: Source, place: Place | None = None, *, streaming: bool = True) -> Cursor:
    """What reads `source` from `place` on; with `streaming` a hub data set is not downloaded first.

    Raises:
        RequestError: the source is missing.

    """
    place = place or {}
    return HubCursor(source, place) if streaming and source.is_hub else ShardCursor(source, place)


class ShardCursor:
    """Goes through the shards of a source; a place is a shard, a row in it, and how many rows came before, for a limit.

    Raises:
        RequestError: there are no shards.

    """

    def __init__(self, source: Source, place: Place) -> None:
        self._shards, self._limit = source.shards(), source.limit
        self._shard, self._row, self._read = (place.get(name, 0) for name in ("shard", "row", "read"))

    def __iter__(self) -> Iterator[Located]:
        for shard in self._shards[self._shard :]:
            rows = shard.read(self._row)
            while self._read != self._limit and (row := next(rows, None)) is not None:
                self._row += 1
                self._read += 1
                yield shard, self._row, row
            self._shard, self._row = self._shard + 1, 0

    def place(self) -> Place:
        return {"shard": self._shard, "row": self._row, "read": self._read}


class HubCursor:
    """Reads a hub data set over the network; a place is the library's own state and how many rows came before.

    Raises:
        RequestError: the hub cannot be reached, or has no such data set.

    """

    def __init__(self, source: Source, place: Place) -> None:
        self._source, self._read = source, place.get("read", 0)
        self._stream = hub.load(source, streaming=True)
        with hub.errors(source):
            if place:
                self._stream.load_state_dict(place["hub"])

    def __iter__(self) -> Iterator[Located]:
        with hub.errors(self._source):
            rows = iter(self._stream)
            while self._read != self._source.limit and (row := next(rows, None)) is not None:
                self._read += 1
                yield self._source, self._read, row

    def place(self) -> Place:
        return {"hub": self._stream.state_dict(), "read": self._read}
