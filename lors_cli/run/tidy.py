"""What killed commands left in a run directory beside their outputs: put back or swept before the next command."""

import os
from collections.abc import Iterable
from pathlib import Path

from lors_cli import processes
from lors_cli.artifacts import publish
from lors_cli.errors import LorsError
from lors_cli.run.layout import STAGES


def run_directory(directory: Path) -> None:
    """Tidy the outputs of all stages in `directory`."""
    outputs(directory / stage.folder for stage in STAGES.values())


def outputs(finals: Iterable[Path]) -> None:
    """Tidy these outputs, each unless another process is at work beside it, or nothing can be written there."""
    for output in finals:
        try:
            final = Path(os.path.abspath(output))  # of `.` too, there are others beside it
            if processes.rank() == 0 and publish.unsettled(final):
                with publish.exclusive(final.parent):
                    publish.settle(final)
        except (LorsError, OSError, ValueError):  # also of a path that cannot be one, which is refused by its key
            continue
