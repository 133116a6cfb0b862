"""The results of the finished blocks of each phase, in a file that a later run goes on from."""

import json
from pathlib import Path
from typing import Any

from lors_cli import processes
from lors_cli.artifacts import files
from lors_cli.errors import LorsError


class Record:
    """The facts of each finished block, by phase, in ``progress.json``; every process has the same.

    Raises:
        LorsError: the file is damaged.

    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / "progress.json"
        try:
            phases = json.loads(self._path.read_text()) if self._path.is_file() else {}
        except ValueError as error:
            raise LorsError(f"{self._path} is damaged ({error}); --force starts over") from None
        self.phases: dict[str, list[Any]] = processes.agree(phases)

    def done(self, phase: str) -> list[Any]:
        """The facts of the blocks that are finished in `phase`."""
        return self.phases.setdefault(phase, [])

    def nothing_done(self) -> bool:
        """Whether no block is finished, so that there is nothing to go on with."""
        return not any(self.phases.values())

    def add(self, phase: str, facts: Any) -> None:
        """The next block of `phase` is finished."""
        self.done(phase).append(facts)
        if processes.rank() == 0:
            files.write_json(self._path, self.phases)
