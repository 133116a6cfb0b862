"""What ``lors sweep`` does with its file and arguments."""

import json
from collections.abc import Sequence
from pathlib import Path

from lors_cli import console, processes
from lors_cli.config.load import is_sweep, read
from lors_cli.config.problems import CLI
from lors_cli.errors import request_error
from lors_cli.search import grid, located
from lors_cli.search.grid_perform import GridSweep
from lors_cli.search.study import Study
from lors_cli.search.study_perform import StudySweep


def sweep(
    path: Path,
    arguments: list[str],
    *,
    models: Sequence[str] = (),
    task: int | None = None,
    force: bool = False,
    dry_run: bool = False,
    prefetch: bool = False,
) -> None:
    """Do the runs of a sweep file, or those that `arguments` span over a config, or only task number `task` of them.

    `models` say, as NAME=PATH, where those of a sweep file are. With `prefetch` what the runs need is fetched, and
    nothing is done.

    Raises:
        RequestError: something is wrong with the file, the arguments or one of the runs; nothing has begun.
        LorsError: what all runs share, or every run, failed.

    """
    if processes.count() > 1:
        got = f"{processes.count()} processes"
        raise request_error(
            "command", "one process", got, "start it without torchrun; --task divides the runs among jobs"
        )
    chosen: GridSweep | StudySweep
    if is_sweep(read(path)):
        if models:
            arguments = [*arguments, f"models={json.dumps(located.parse(models))}"]
        chosen = StudySweep(Study(path, arguments), task, force=force)
    elif models:
        remedy = "set the model of the config: model=PATH"
        raise request_error(located.OPTION, "a sweep file with it", f"a config, {path}", remedy, CLI)
    else:
        chosen = GridSweep(grid.build(path, arguments), task, force=force)
    if prefetch:
        console.result("\n".join(chosen.fetched()))
        return
    chosen.check()
    if dry_run:
        chosen.show()
    else:
        chosen.perform()
