"""The commands that say what there is: the methods, and the keys of a config."""

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from lors_cli import console
from lors_cli.cli.options import Debug, Quiet, app, reporting


@app.command()
def init(
    name: Annotated[
        str, typer.Argument(metavar="[NAME]", help="A config such as quickstart, or a folder of them such as papers.")
    ] = "quickstart",
    output: Annotated[str, typer.Option(metavar="DIR", help="Where the file goes.")] = ".",
    listed: Annotated[bool, typer.Option("--list", help="Only print the names that there are.")] = False,
    debug: Debug = False,
    quiet: Quiet = False,
) -> None:
    """Write a commented config to start from; nothing is overwritten."""
    with reporting(None, debug=debug, quiet=quiet):
        from lors_cli.tools import init as tool

        if listed:
            console.result("\n".join(tool.names()))
            return
        written = tool.init(name, Path(os.path.expanduser(output)))
        console.result("\n".join(map(str, written)))
        console.log.info("next: `lors run %s`; `lors run --help` lists the keys", shlex.quote(str(written[0])))


@app.command()
def methods() -> None:
    """Print every method of pruning, quantisation and adapters with its equation and paper."""
    with reporting(None, debug=False):
        from lors_cli import adapters, pruning, quantization
        from lors_cli.config import recipes

        tables: dict[str, Mapping[str, Any]] = {
            "pruning (prune.method)": pruning.all_methods(),
            "profiles over blocks (prune.profile)": pruning.PROFILES,
            "repairs (prune.repair)": pruning.REPAIRS,
            "updates (prune.update)": pruning.UPDATES,
            "quantisation (quantize.method)": quantization.METHODS,
            "adapters (train.method)": adapters.METHODS,
        }
        width = max(len(name) for rows in tables.values() for name in rows)
        for title, rows in tables.items():
            console.result(title)
            for name, row in rows.items():
                console.result(f"  {name:{width}}  {row.equation}\n  {'':{width}}  {row.paper}")
                if len(formulations := getattr(row, "formulations", ())) > 1:
                    console.result(f"  {'':{width}}  formulations: {', '.join(formulations)}")
                if rate := getattr(row, "learning_rate", None):
                    console.result(f"  {'':{width}}  learning_rate: {rate:g} if left out")
        console.result("recipes (recipe)")
        for name, recipe in recipes.RECIPES.items():
            newest = ", best" if name == recipes.NEWEST else ""
            console.result(f"  {name:{width}}  of {recipe.released}{newest}")
            for preset in recipe.presets:
                which = f", with {', '.join(preset.methods)}" if preset.methods else ""
                values = ", ".join(f"{preset.section}.{key}: {value}" for key, value in preset.values.items())
                console.result(f"  {'':{width}}  {values}{which}")


@app.command()
def schema() -> None:
    """Print the JSON schema of configs, for an editor that checks and completes YAML."""
    with reporting(None, debug=False):
        from lors_cli.config.reference import schema_text

        console.result(schema_text().rstrip())
