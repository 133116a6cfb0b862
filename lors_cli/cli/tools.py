"""The commands that read or make a directory without a config."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from lors_cli import console
from lors_cli.cli.options import Debug, Force, Quiet, app, reporting


@app.command()
def inspect(
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="A model directory, packed or not, or one of an adapter.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    modules: Annotated[
        bool, typer.Option("--modules", help="A row for each linear, not for those of the same place together.")
    ] = False,
    plots: Annotated[
        bool, typer.Option("--plots", help="Draw heatmaps: a model's sparsity; an adapter's norms by head and block.")
    ] = False,
    output: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="With --plots: the folder to draw into; plots beside PATH if left out."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="With --plots: the adapter's model, if it is not where the adapter says."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Show what is in a model or adapter directory: zeros and pattern per module, dtypes, sizes, provenance."""
    with reporting(None, debug=debug):
        from lors_cli.tools.inspect import inspect as look
        from lors_cli.tools.inspect import render

        facts = look(Path(path))
        if plots or output or base:
            from lors_cli.tools.inspect_plots import draw

            facts |= draw(facts, base=base, output=Path(os.path.expanduser(output)) if output else None)
        console.result(json.dumps(facts, indent=2, allow_nan=False) if as_json else render(facts, modules=modules))


@app.command()
def pack(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model directory.")],
    output: Annotated[
        str | None, typer.Argument(metavar="OUTPUT", help="A new directory; MODEL-packed if left out.")
    ] = None,
    layout: Annotated[
        str | None, typer.Option(help="2:4 or bitmask; the smaller one for each weight if left out.")
    ] = None,
    compress: Annotated[
        bool,
        typer.Option("--compress", help="Compress what is packed too, to keep or copy; it runs once it is unpacked."),
    ] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Take the model's code along too; it is not run.")
    ] = False,
    force: Force = False,
    debug: Debug = False,
    quiet: Quiet = False,
) -> None:
    """Write a model directory without its zeros, to keep or copy: about 9/16 of its size at 50% zeros in 16 bits."""
    with reporting(None, debug=debug, quiet=quiet):
        from lors_cli.tools.pack import pack as make

        target = Path(output or f"{model.rstrip('/')}-packed")
        code = trust_remote_code
        make(Path(model), target, layout=layout, compress=compress, trust_remote_code=code, force=force)


@app.command()
def unpack(
    packed: Annotated[str, typer.Argument(metavar="PACKED", help="A directory that lors pack made.")],
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="A new directory.")],
    force: Force = False,
    debug: Debug = False,
    quiet: Quiet = False,
) -> None:
    """Restore a packed model byte for byte, and check it against its digests."""
    with reporting(None, debug=debug, quiet=quiet):
        from lors_cli.tools.pack import unpack as make

        make(Path(packed), Path(output), force=force)
