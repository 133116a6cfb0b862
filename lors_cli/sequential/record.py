"""The results of the finished blocks of each phase, in a file that a later run goes on from.

With them go the digests of what else it goes on from: the states that enter the next block, the tensors written so far.
"""

import logging
from pathlib import Path
from typing import Any

from lors_cli import processes
from lors_cli.artifacts import sealed

log = logging.getLogger(__name__)


class Record:
    """The facts of each finished block, by phase, in ``progress.json``; every process has the same.

    A file that is damaged, or belongs to another run than `owner`, is put aside: all begins again.

    Attributes:
        phases: the facts by phase, one entry for each block.
        states: the digests of the states that enter the next block of the phase at work, by window.
        written: the digests of the tensors of the finished blocks, by their names in the files.

    """

    def __init__(self, directory: Path, owner: str = "") -> None:
        self._path, self._owner = directory / "progress.json", owner
        kept = processes.agree(self._read() if processes.rank() == 0 else None)
        self.phases: dict[str, list[Any]] = kept.get("phases", {})
        self.states: dict[str, str] = kept.get("states", {})
        self.written: dict[str, str] = kept.get("written", {})

    def _read(self) -> dict[str, Any]:
        if not self._path.exists():
            if any(path.name != sealed.REQUEST for path in self._path.parent.iterdir()):
                log.warning("%s is not there, so no block counts as finished; all begin again", self._path)
            return {}
        kept: dict[str, Any] | None = sealed.read_or_warn(self._path, "all blocks begin again", self._owner)
        return kept or {}

    def done(self, phase: str) -> list[Any]:
        """The facts of the blocks that are finished in `phase`."""
        return self.phases.setdefault(phase, [])

    def nothing_done(self) -> bool:
        """Whether no block is finished, so that there is nothing to go on with."""
        return not any(self.phases.values())

    def add(
        self, phase: str, facts: Any, states: dict[str, str] | None = None, written: dict[str, str] | None = None
    ) -> None:
        """A block of `phase` is finished: its facts, the digests of the states that it left and of what it wrote."""
        self.done(phase).append(facts)
        self.states = states or {}
        self.written |= written or {}
        self._write()

    def begin_again(self, phase: str, reason: str) -> None:
        """Forget the blocks of `phase`, because something that they left is damaged."""
        log.warning("%s: %s; the blocks of this phase begin again", phase, reason)
        self.phases[phase], self.states, self.written = [], {}, {}
        self._write()

    def _write(self) -> None:
        if processes.rank() == 0:
            kept = {"phases": self.phases, "states": self.states, "written": self.written}
            sealed.write_json(self._path, kept, self._owner)
