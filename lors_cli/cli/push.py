"""The command that uploads to the Hugging Face hub; nothing else of lors ever does."""

from pathlib import Path
from typing import Annotated

import typer

from lors_cli.cli.options import Debug, Quiet, app, reporting


@app.command()
def push(
    directory: Annotated[str, typer.Argument(metavar="DIRECTORY", help="A model or adapter that lors published.")],
    repo_id: Annotated[
        str, typer.Argument(metavar="REPO_ID", help="owner/name of the repository, which is made if it does not exist.")
    ],
    private: Annotated[
        bool, typer.Option("--private", help="Make a new repository private; refuse a public one.")
    ] = False,
    revision: Annotated[
        str | None, typer.Option(metavar="BRANCH", help="The branch to push to; main if left out.")
    ] = None,
    message: Annotated[str | None, typer.Option(metavar="TEXT", help="The message of the commit.")] = None,
    create_pr: Annotated[
        bool, typer.Option("--create-pr", help="Open a pull request instead of committing to the branch.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the files and the card, and send nothing. It needs no token.")
    ] = False,
    debug: Debug = False,
    quiet: Quiet = False,
) -> None:
    """Upload a published directory with its card to the Hugging Face hub."""
    with reporting(None, debug=debug, quiet=quiet):
        from lors_cli.tools.push import Target
        from lors_cli.tools.push import push as upload

        target = Target(repo_id, private=private, revision=revision, message=message, create_pr=create_pr)
        upload(Path(directory), target, dry_run=dry_run)
