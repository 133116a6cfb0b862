"""The report's command."""

import os
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from lors_cli import console
from lors_cli.cli.options import Debug, Quiet, app, reporting


@app.command()
def report(
    run_directories: Annotated[
        list[str], typer.Argument(metavar="RUN_DIR", help="Run directories, or folders with run directories in them.")
    ],
    kind: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="terminal, markdown, csv, latex, json or html. If left out, the suffix of --output decides.",
        ),
    ] = None,
    output: Annotated[
        str | None, typer.Option(metavar="PATH", help="A file to write, or a directory to write every format to.")
    ] = None,
    over_seeds: Annotated[
        bool,
        typer.Option(
            "--over-seeds", help="Show runs that differ only in the seed as one line: mean ± standard deviation."
        ),
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Fail if a run has to be left out.")] = False,
    debug: Debug = False,
    quiet: Quiet = False,
) -> None:
    """Make one table of the results of one or many runs, with tests of the differences, and plots."""
    with reporting(None, debug=debug, quiet=quiet):
        from lors_cli.tools.report import report as make

        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        shown = make(
            [Path(os.path.expanduser(path)) for path in run_directories],
            kind=kind,
            output=Path(os.path.expanduser(output)) if output else None,
            over_seeds=over_seeds,
            strict=strict,
            width=width,
        )
        console.result(shown)
