"""What the commands share: their options, and how an error becomes a message and an exit status."""

from contextlib import contextmanager
from typing import Annotated

import typer

from lors_cli import console, interrupts, processes
from lors_cli.errors import LorsError, RequestError

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    help="Sparse language models: prune, train with adapters that keep the zeros, merge with proof, evaluate.",
)

Config = Annotated[str, typer.Argument(metavar="CONFIG", help="YAML file of the experiment.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Override keys of the file, such as prune.method=sparsegpt."),
]
Force = Annotated[bool, typer.Option("--force", help="Do it again, replacing what is there.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check everything and say what would be done; load no weights.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only warnings and results.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Print every detail, also the messages of libraries.")]


@contextmanager
def reporting(config: str | None, *, debug: bool, quiet: bool = False, verbose: bool = False):  # type: ignore[no-untyped-def]
    """Set the console up; turn what goes wrong into a message and an exit status."""
    # only the first of several processes prints; the others report only what goes wrong in them alone
    console.setup(-1 if quiet or processes.rank() else int(verbose or debug))
    try:
        with interrupts.heeded():
            yield
            interrupts.check()
    except KeyboardInterrupt:
        console.log.error("interrupted; the same command goes on from what was saved")
        raise SystemExit(130) from None
    except RequestError as error:
        if processes.rank() == 0:
            console.error(error.in_file(config) if config else error, debug=debug)
        raise SystemExit(error.exit_status) from None
    except LorsError as error:
        console.error(error, debug=debug)
        raise SystemExit(error.exit_status) from None
    except BrokenPipeError:
        raise
    except Exception as error:
        console.error(error, debug=debug)
        raise SystemExit(1) from None
