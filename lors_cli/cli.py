"""The command line: each command reads its arguments, calls one function, and turns an error into an exit status.

Heavy imports stand inside the commands, so that ``lors --help`` answers at once.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from lors_cli import __version__, console, processes
from lors_cli.errors import LorsError, RequestError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Sparse language models: prune, train with adapters that keep the zeros, merge with proof, evaluate.",
)

Config = Annotated[str, typer.Argument(metavar="CONFIG", help="YAML file of the experiment.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, such as prune.method=sparsegpt.")
]
Force = Annotated[bool, typer.Option("--force", help="Do it again, replacing what is there.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check everything and say what would be done; load no weights.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only warnings and results.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Every detail, the libraries' messages too.")]


@contextmanager
def _reporting(config: str | None, *, debug: bool, quiet: bool = False, verbose: bool = False):  # type: ignore[no-untyped-def]
    """Set the console up; turn what goes wrong into a message and an exit status."""
    # of several processes the first speaks; the others say only what goes wrong with them alone
    console.setup(-1 if quiet or processes.rank() else int(verbose or debug))
    # SIGTERM, the warning of a scheduler, ends like Ctrl-C: with a message, and with what was saved kept
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
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
    finally:
        signal.signal(signal.SIGTERM, before)


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
        with _reporting(config, debug=debug, quiet=quiet, verbose=verbose):
            from lors_cli import pipeline
            from lors_cli.config.load import load

            loaded = load(Path(config), overrides or [])
            pipeline.run(loaded, stages(loaded), force=force, dry_run=dry_run)

    app.command(name, help=summary)(command)


def _present(config: object) -> list[str]:
    """The stages that the config has a section for, in order."""
    present = [name for name in ("prune", "train", "merge", "eval") if getattr(config, name) is not None]
    if not present:
        from lors_cli.errors import request_error

        raise request_error("CONFIG", "at least one of prune:, train:, merge:, eval:", "none", "add a section")
    return present


_stage_command("run", _present, "All stages of the file, in order; finished ones are skipped.")
_stage_command("prune", lambda _: ["prune"], "Dense model -> <output_dir>/pruned.")
_stage_command("train", lambda _: ["train"], "Pruned model -> <output_dir>/adapter.")
_stage_command("merge", lambda _: ["merge"], "Pruned model + adapter -> <output_dir>/merged, the mask kept and proved.")
_stage_command("eval", lambda _: ["eval"], "Any of these models -> <output_dir>/eval.")


@app.command()
def sweep(
    config: Config,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=V1,V2,...", help="Values to combine, and overrides for all runs."),
    ] = None,
    task: Annotated[
        int | None, typer.Option(metavar="N", help="Only this run of the grid, counted from 0; for array jobs.")
    ] = None,
    force: Force = False,
    dry_run: DryRun = False,
    debug: Debug = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train with every combination of some settings; one table, and the best config as a file."""
    with _reporting(config, debug=debug, quiet=quiet, verbose=verbose):
        from lors_cli import pipeline
        from lors_cli.stages.sweep import sweep as explore

        explore(Path(config), arguments or [], pipeline.run, task=task, force=force, dry_run=dry_run)


@app.command()
def inspect(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A model or adapter directory.")],
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
    debug: Debug = False,
) -> None:
    """What is in a model or adapter directory: zeros and pattern per module, dtypes, sizes, provenance."""
    with _reporting(None, debug=debug):
        from lors_cli.stages.inspect import inspect as look
        from lors_cli.stages.inspect import render

        facts = look(Path(path))
        console.result(json.dumps(facts, indent=2) if as_json else render(facts))


@app.command()
def pack(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model directory.")],
    output: Annotated[
        str | None, typer.Argument(metavar="OUTPUT", help="A new directory; MODEL-packed if left out.")
    ] = None,
    layout: Annotated[
        str | None, typer.Option(help="2:4 or bitmask; the smaller one for each weight if left out.")
    ] = None,
    force: Force = False,
    debug: Debug = False,
    quiet: Quiet = False,
) -> None:
    """A model directory without its zeros, to keep or copy: about 9/16 of the size at half sparsity in 16 bits."""
    with _reporting(None, debug=debug, quiet=quiet):
        from lors_cli.stages.pack import pack as make

        make(Path(model), Path(output or f"{model.rstrip('/')}-packed"), layout=layout, force=force)


@app.command()
def unpack(
    packed: Annotated[str, typer.Argument(metavar="PACKED", help="A directory that lors pack made.")],
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="A new directory.")],
    force: Force = False,
    debug: Debug = False,
    quiet: Quiet = False,
) -> None:
    """The model that was packed, byte for byte; checked against its digests."""
    with _reporting(None, debug=debug, quiet=quiet):
        from lors_cli.stages.pack import unpack as make

        make(Path(packed), Path(output), force=force)


@app.command()
def bench(
    shape: Annotated[
        str | None,
        typer.Option(help="A named shape (llama-3-8b, llama-2-7b, tinyllama-1.1b, smollm2-135m) or a config.json."),
    ] = None,
    scopes: Annotated[str, typer.Option(help="What is measured: linear, block, model; several with commas.")] = "",
    sequence_lengths: Annotated[str, typer.Option(help="Tokens in a sequence, such as 512,1024,2048.")] = "",
    ranks: Annotated[str, typer.Option(help="Such as 16,32,64.")] = "16",
    batch_sizes: Annotated[str, typer.Option(help="Sequences in a micro-batch, such as 1,2,4.")] = "1",
    methods: Annotated[str, typer.Option(help="Names from the table, with commas; all if left out.")] = "",
    sparsity: Annotated[str, typer.Option(help="Of the random weights: a fraction or N:M.")] = "2:4",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str | None, typer.Option(help="float32 on a CPU, else bfloat16; or float16.")] = None,
    accumulation: Annotated[int, typer.Option(help="Micro-batches in a window, for lors-cached.")] = 8,
    gradient_checkpointing: Annotated[bool, typer.Option("--gradient-checkpointing", help="Recompute blocks.")] = False,
    rounds: Annotated[int, typer.Option(help="Timed runs of each method, at least; the median counts.")] = 5,
    time_limit: Annotated[float, typer.Option(help="Seconds after which nothing new begins.")] = 1200.0,
    predict: Annotated[bool, typer.Option("--predict", help="Only the roofline's figures; measures nothing.")] = False,
    hardware: Annotated[str | None, typer.Option(help="With --predict: h100, h200 or a100.")] = None,
    output_dir: Annotated[str | None, typer.Option(help="For results and plots; runs/bench/... if left out.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
    force: Force = False,
    debug: Debug = False,
    quiet: Quiet = False,
) -> None:
    """Time, peak memory, FLOPs and saved activations of each method, side by side in one run; tables and plots."""
    with _reporting(None, debug=debug, quiet=quiet):
        from lors_cli.stages.bench import Options, render
        from lors_cli.stages.bench import bench as measure

        found = measure(
            Options(
                shape=shape,
                scopes=_words(scopes),
                sequence_lengths=_numbers("--sequence-lengths", sequence_lengths),
                ranks=_numbers("--ranks", ranks),
                batch_sizes=_numbers("--batch-sizes", batch_sizes),
                methods=_words(methods),
                sparsity=sparsity,
                device=device,
                dtype=dtype,
                accumulation=accumulation,
                gradient_checkpointing=gradient_checkpointing,
                rounds=rounds,
                time_limit=time_limit,
                predict=predict,
                hardware=hardware,
                output_dir=output_dir,
                force=force,
            )
        )
        console.result(json.dumps(found, indent=2) if as_json else render(found))


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _numbers(key: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in _words(text))
    except ValueError:
        from lors_cli.errors import request_error

        raise request_error(key, "whole numbers with commas between them", text, "such as 16,64") from None


@app.command()
def methods() -> None:
    """Every pruning and adapter method with its equation and paper."""
    with _reporting(None, debug=False):
        from lors_cli import adapters, pruning

        for title, table in (
            ("pruning (prune.method)", pruning.METHODS),
            ("adapters (train.method)", adapters.METHODS),
        ):
            console.result(title)
            for name, row in table.items():
                console.result(f"  {name:10} {row.equation}\n  {'':10} {row.paper}")
                if len(ways := getattr(row, "formulations", ())) > 1:
                    console.result(f"  {'':10} formulations: {', '.join(ways)}")


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
