"""The benchmark's command."""

import json
from typing import Annotated, Any

import typer

from lors_cli import console
from lors_cli.cli.options import Debug, Force, Quiet, app, reporting

# What --decode takes.
OF_DECODE = (
    *("batch_sizes", "sequence_lengths", "sparsity", "bits", "device", "dtype", "rounds", "time_limit", "output_dir"),
)


@app.command()
def bench(
    context: typer.Context,
    shape: Annotated[
        str | None,
        typer.Option(help="A named shape (llama-3-8b, llama-2-7b, tinyllama-1.1b, smollm2-135m) or a config.json."),
    ] = None,
    scopes: Annotated[str, typer.Option(help="What to measure: linear, block or model; several with commas.")] = "",
    sequence_lengths: Annotated[str, typer.Option(help="Tokens in a sequence, such as 512,1024,2048.")] = "",
    ranks: Annotated[str, typer.Option(help="Ranks of the adapters, such as 16,32,64.")] = "16",
    batch_sizes: Annotated[str, typer.Option(help="Sequences in a micro-batch, such as 1,2,4.")] = "1",
    methods: Annotated[str, typer.Option(help="Names of methods from the table, with commas; all if left out.")] = "",
    sparsity: Annotated[str, typer.Option(help="Sparsity of the random weights: a fraction of zeros, or N:M.")] = "2:4",
    bits: Annotated[
        int | None,
        typer.Option(help="With --decode and a shape: round its random weights to codes of so many bits, 2 to 8."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, bfloat16 or float16; float32 on a CPU and bfloat16 on a GPU if left out."),
    ] = None,
    accumulation: Annotated[int, typer.Option(help="Micro-batches in an optimiser step, for lors-cached.")] = 8,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Recompute the blocks in backward.")
    ] = False,
    rounds: Annotated[
        int, typer.Option(help="How many timed runs each method has at least; the result is the median.")
    ] = 5,
    time_limit: Annotated[float, typer.Option(help="Seconds after which nothing new begins.")] = 1200.0,
    predict: Annotated[
        bool,
        typer.Option(
            "--predict",
            help="Only the figures of the roofline; nothing is measured. They are written if --output-dir is given.",
        ),
    ] = False,
    hardware: Annotated[str | None, typer.Option(help="With --predict: h100, h200 or a100.")] = None,
    decode: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL_OR_SHAPE",
            help="Measure instead what packed weights bring when this model, or a model of this shape, writes: each"
            " linear and whole tokens. --sequence-lengths are then those of prompts.",
        ),
    ] = None,
    output_dir: Annotated[
        str | None, typer.Option(help="Where results and plots go; runs/bench/... if left out.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    force: Force = False,
    debug: Debug = False,
    quiet: Quiet = False,
) -> None:
    """Measure time, peak memory, FLOPs and saved activations of each method in one run; write tables and plots."""
    with reporting(None, debug=debug, quiet=quiet):
        if decode is not None:
            _decode(context, as_json=as_json)
            return
        if bits is not None:
            from lors_cli.errors import request_error

            raise request_error("--bits", "this option with --decode alone", bits, "leave --bits out")
        from lors_cli.benchmark import bench as benchmark
        from lors_cli.benchmark.tables import render

        results = benchmark.bench(
            benchmark.Options(
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
        console.result(json.dumps(results, indent=2, allow_nan=False) if as_json else render(results))


def _decode(context: typer.Context, *, as_json: bool) -> None:
    from lors_cli.benchmark import decode
    from lors_cli.benchmark.decode_tables import render
    from lors_cli.errors import request_error

    given = {
        name: value
        for name, value in context.params.items()
        if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
    }
    if others := sorted({*given} - {*OF_DECODE, "decode", "as_json", "debug", "quiet"}):
        known = ", ".join(f"--{name.replace('_', '-')}" for name in OF_DECODE)
        option = f"--{others[0].replace('_', '-')}"
        raise request_error(option, f"with --decode only {known}", "this option", f"leave {option} out")
    asked: dict[str, Any] = {
        name: given[name]
        for name in ("sparsity", "bits", "device", "dtype", "rounds", "time_limit", "output_dir")
        if name in given
    }
    for name, key in (("batch_sizes", "--batch-sizes"), ("prompt_lengths", "--sequence-lengths")):
        if (option := key.removeprefix("--").replace("-", "_")) in given:
            asked[name] = _numbers(key, given[option])
    results = decode.decode(decode.Options(context.params["decode"], **asked))
    console.result(json.dumps(results, indent=2, allow_nan=False) if as_json else render(results))


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _numbers(key: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in _words(text))
    except ValueError:
        from lors_cli.errors import request_error

        raise request_error(key, "whole numbers with commas between them", text, "write them as in 16,64") from None
