"""The command line: each command reads its arguments, calls one function, and turns an error into an exit status.

Heavy imports are inside the commands, so that ``lors --help`` answers at once.
"""

import os
import sys
from typing import Annotated

import typer

from lors_cli import __version__, console
from lors_cli.cli.options import app

from lors_cli.cli import stages, report, tools, generate, reference, bench, push  # isort: skip  # in the order of the help

__all__ = ["app", "bench", "generate", "main", "push", "reference", "report", "stages", "tools"]


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Options that stand before a command."""
    if version:
        console.result(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line. Nothing is fetched or reported behind the user's back."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        app()
    except BrokenPipeError:
        sys.stderr.close()
        raise SystemExit(1) from None
