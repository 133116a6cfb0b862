"""The commands that read a config: one for each stage, ``run`` for all, ``sweep`` for many."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from lors_cli import console, offline
from lors_cli.cli.options import Config, Debug, DryRun, Force, Overrides, Quiet, Verbose, app, reporting
from lors_cli.run.layout import STAGES


class _WithKeys(TyperCommand):
    """A command whose help lists the keys of its section."""

    section = ""

    def get_help(self, ctx: Any) -> str:
        """The help, which typer prints itself, and the keys."""
        from lors_cli.config import reference

        shown, formatter = super().get_help(ctx), ctx.make_formatter()
        with formatter.section("Keys of the file" if self.section else "Sections and keys of the file"):
            rows = [
                (path, " ".join(filter(None, [_default(default), meaning or kind])))
                for path, kind, default, meaning in reference.keys(self.section)
            ]
            formatter.write_dl(rows)
        return f"{shown}{formatter.getvalue().rstrip()}"


def _default(default: str) -> str:
    text = default.replace("`", "")
    return f"[{text}]" if text == "required" else f"[default: {text}]" if text else ""


def _of(section: str) -> type[TyperCommand]:
    """The class of the command that reads the `section`; all sections if it is empty."""
    return type("StageCommand", (_WithKeys,), {"section": section})


def _stage_command(name: str, stages: Callable[[object], list[str]], summary: str) -> None:
    """Add the command `name`, which runs the `stages` of a config."""

    def command(
        config: Config,
        overrides: Overrides = None,
        force: Force = False,
        dry_run: DryRun = False,
        debug: Debug = False,
        quiet: Quiet = False,
        verbose: Verbose = False,
    ) -> None:
        with reporting(config, debug=debug, quiet=quiet, verbose=verbose):
            from lors_cli.config.load import load
            from lors_cli.config.schema import missing

            loaded = load(Path(config), overrides or [])
            if name != "merge" and getattr(loaded, name) is None:
                raise missing(name)
            from lors_cli import pipeline  # imports torch

            pipeline.run(loaded, stages(loaded), force=force, dry_run=dry_run)

    app.command(name, help=summary, cls=_of(name))(command)


def _present(config: object) -> list[str]:
    """The stages that the config has a section for, in order."""
    present = [name for name in STAGES if getattr(config, name) is not None]
    if not present:
        from lors_cli.errors import request_error

        expected = f"at least one of {', '.join(f'{name}:' for name in STAGES)}"
        raise request_error("CONFIG", expected, "none", "add one of these sections")
    return present


def _use(bundle: str | None, config: str | None) -> None:
    """Have the libraries of the hub read from a `bundle`, if there is one, else there has to be a `config`."""
    from lors_cli.errors import request_error

    if bundle and config and "=" not in config:
        got = f"{config} and --bundle {bundle}"
        raise request_error("CONFIG", "a YAML file or --bundle DIR, not both", got, "leave one of them out")
    if bundle:
        offline.use_home(Path(bundle) / "hub")
        offline.switch_on()
    elif not config:
        raise request_error("CONFIG", "a YAML file, or --bundle DIR", "neither", "name one of them")


@app.command(cls=_of(""))
def run(
    config: Annotated[
        str | None, typer.Argument(metavar="CONFIG", help="YAML file of the experiment; left out with --bundle.")
    ] = None,
    overrides: Overrides = None,
    bundle: Annotated[
        str | None, typer.Option(metavar="DIR", help="Run what `lors bundle` collected in DIR, without a network.")
    ] = None,
    force: Force = False,
    dry_run: DryRun = False,
    debug: Debug = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Run all stages of the file, in order; finished ones are skipped."""
    given = [*([config] if config else []), *(overrides or [])]
    with reporting(bundle or config, debug=debug, quiet=quiet, verbose=verbose):
        _use(bundle, config)
        if bundle:
            from lors_cli.tools import bundle as bundles

            loaded = bundles.config(Path(bundle), given)
        else:
            from lors_cli.config.load import load

            loaded = load(Path(given[0]), given[1:])
        from lors_cli import pipeline  # imports torch

        pipeline.run(loaded, _present(loaded), force=force, dry_run=dry_run)


_stage_command("prune", lambda _: ["prune"], "Dense model -> <output_dir>/pruned.")
_stage_command("align", lambda _: ["align"], "Pruned model -> <output_dir>/aligned, trained on general text.")
_stage_command(
    "quantize",
    lambda _: ["quantize"],
    "Pruned or dense model -> <output_dir>/quantized, in a few bits a weight.",
)
_stage_command("train", lambda _: ["train"], "Pruned model -> <output_dir>/adapter.")
_stage_command(
    "recover", lambda _: ["recover"], "Adapter of a pruned model -> <output_dir>/recovered, for the original."
)
_stage_command("merge", lambda _: ["merge"], "Pruned model + adapter -> <output_dir>/merged, the mask kept and proved.")


@app.command(name="eval", cls=_of("eval"))
def evaluate(
    config: Config,
    overrides: Overrides = None,
    prefetch: Annotated[
        bool, typer.Option("--prefetch", help="Only fetch models and data, for a machine without a network.")
    ] = False,
    force: Force = False,
    dry_run: DryRun = False,
    debug: Debug = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Dense, pruned, aligned, tuned or merged models -> <output_dir>/eval."""
    with reporting(config, debug=debug, quiet=quiet, verbose=verbose):
        from lors_cli.config.load import load

        loaded = load(Path(config), overrides or [])
        if prefetch:
            from lors_cli.tools.prefetch import prefetch as fetch

            console.result("\n".join(fetch(loaded)))
        else:
            from lors_cli import pipeline

            pipeline.run(loaded, ["eval"], force=force, dry_run=dry_run)


@app.command()
def bundle(
    config: Config,
    directory: Annotated[str, typer.Argument(metavar="DIR", help="A new directory.")],
    overrides: Overrides = None,
    wheels: Annotated[
        bool, typer.Option("--wheels/--no-wheels", help="Take along what pip needs to install lors there.")
    ] = True,
    force: Force = False,
    debug: Debug = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Collect all that a config or a sweep file needs, for `--bundle` of run or sweep where there is no network."""
    with reporting(config, debug=debug, quiet=quiet, verbose=verbose):
        from lors_cli.artifacts import publish
        from lors_cli.config.load import is_sweep, read

        place = Path(directory)
        offline.use_home(publish.partial_directory(place) / "hub")
        from lors_cli.tools import bundle as bundles

        path, changes = Path(config), overrides or []
        if is_sweep(read(path)):
            from lors_cli.search import bundled

            bundled.make(path, changes, place, with_wheels=wheels, force=force)
        else:
            bundles.make(path, changes, place, with_wheels=wheels, force=force)


@app.command()
def sweep(
    config: Annotated[
        str | None,
        typer.Argument(metavar="FILE", help="A config, or a sweep file (docs/sweep.md); left out with --bundle."),
    ] = None,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=V1,V2,...", help="Values to combine (for a config), and overrides."),
    ] = None,
    task: Annotated[
        int | None, typer.Option(metavar="N", help="Do only this run or row, counted from 0; for array jobs.")
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PATH", help="Where a model of a sweep file is on this machine; once for each. Repeatable."
        ),
    ] = None,
    bundle: Annotated[
        str | None, typer.Option(metavar="DIR", help="Run what `lors bundle` collected in DIR, without a network.")
    ] = None,
    prefetch: Annotated[
        bool,
        typer.Option("--prefetch", help="Only fetch the models and data of all rows, for nodes without a network."),
    ] = False,
    force: Force = False,
    dry_run: DryRun = False,
    debug: Debug = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Compare many runs of one experiment in one table, and write the best config."""
    given = [*([config] if config else []), *(arguments or [])]
    with reporting(bundle or config, debug=debug, quiet=quiet, verbose=verbose):
        _use(bundle, config)
        from lors_cli.search.sweep import sweep as search

        if bundle:
            if models or prefetch:
                from lors_cli.errors import request_error

                got = "--models" if models else "--prefetch"
                expected = "a bundle alone: it has all models and data"
                raise request_error("--bundle", expected, f"{got} with it", f"leave {got} out")
            from lors_cli.tools import bundle as bundles

            path, own = bundles.opened(Path(bundle))
            changes = [*own, *given]
        else:
            path, changes = Path(given[0]), given[1:]
        search(path, changes, models=models or [], task=task, force=force, dry_run=dry_run, prefetch=prefetch)
