"""The commands that say what there is: the methods, and the keys of a config."""

from collections.abc import Mapping
from typing import Any

from lors_cli import console
from lors_cli.cli.options import app, reporting


@app.command()
def methods() -> None:
    """Print every pruning and adapter method with its equation and paper."""
    with reporting(None, debug=False):
        from lors_cli import adapters, pruning

        tables: dict[str, Mapping[str, Any]] = {
            "pruning (prune.method)": pruning.all_methods(),
            "profiles over blocks (prune.profile)": pruning.PROFILES,
            "repairs (prune.repair)": pruning.REPAIRS,
            "adapters (train.method)": adapters.METHODS,
        }
        width = max(len(name) for rows in tables.values() for name in rows)
        for title, rows in tables.items():
            console.result(title)
            for name, row in rows.items():
                console.result(f"  {name:{width}}  {row.equation}\n  {'':{width}}  {row.paper}")
                if len(formulations := getattr(row, "formulations", ())) > 1:
                    console.result(f"  {'':{width}}  formulations: {', '.join(formulations)}")


@app.command()
def schema() -> None:
    """Print the JSON schema of configs, for an editor that checks and completes YAML."""
    with reporting(None, debug=False):
        from lors_cli.config.reference import schema_text

        console.result(schema_text().rstrip())
