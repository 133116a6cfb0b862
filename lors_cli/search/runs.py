"""How the runs of a search are checked and performed: by `pipeline`, quietly."""

import logging
from contextlib import redirect_stdout
from io import StringIO

from lors_cli import pipeline
from lors_cli.config.schema import Config

log = logging.getLogger(__name__)


def check(config: Config, stages: list[str], *, force: bool = False) -> None:
    """Prepare the stages without doing them.

    Raises:
        RequestError: something is wrong with one of them.

    """
    with redirect_stdout(StringIO()) as plan:
        pipeline.run(config, stages, force=force, dry_run=True)
    log.debug("%s", plan.getvalue().strip())


def perform(config: Config, stages: list[str], *, force: bool = False) -> None:
    """Run the stages; what they print is not the result of the search.

    Raises:
        LorsError: one failed.

    """
    with redirect_stdout(StringIO()):
        pipeline.run(config, stages, force=force)
