"""What ``lors sweep`` does with its file and arguments."""

from pathlib import Path

from lors_cli import processes
from lors_cli.config.load import read
from lors_cli.errors import request_error
from lors_cli.search import grid, sweep_file
from lors_cli.search.grid_perform import GridSweep
from lors_cli.search.study import Study
from lors_cli.search.study_perform import StudySweep


def sweep(
    path: Path, arguments: list[str], *, task: int | None = None, force: bool = False, dry_run: bool = False
) -> None:
    """Do the runs of a sweep file, or those that `arguments` span over a config, or only task number `task` of them.

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
    if sweep_file.is_sweep(read(path)):
        chosen = StudySweep(Study(path, arguments), task, force=force)
    else:
        chosen = GridSweep(grid.build(path, arguments), task, force=force)
    chosen.check()
    if dry_run:
        chosen.show()
    else:
        chosen.perform()
