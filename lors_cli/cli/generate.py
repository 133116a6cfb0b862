"""The command that lets models write."""

import json
from pathlib import Path
from typing import Annotated

import typer

from lors_cli import console
from lors_cli.cli.options import Debug, Quiet, app, reporting


@app.command()
def generate(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Model directories, packed or not, or hub ids.")
    ],
    prompt: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="A prompt; may be given several times.")
    ] = None,
    prompts: Annotated[str | None, typer.Option(metavar="FILE", help="A text file with a prompt on each line.")] = None,
    packed: Annotated[
        bool, typer.Option("--packed", help="Keep the models' weights in memory without their zeros, and run them so.")
    ] = False,
    no_chat_template: Annotated[
        bool,
        typer.Option("--no-chat-template", help="Continue the prompts as they are; do not make a user's turn of them."),
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(help="The most tokens of an answer.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 takes the most probable token; above, tokens are drawn.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Draw from the most probable tokens with this probability.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of what is drawn, for each answer anew.")] = 0,
    dtype: Annotated[str, typer.Option(help="auto (as stored), float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let code in the models' directories run.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON at the end.")] = False,
    debug: Debug = False,
    quiet: Quiet = False,
) -> None:
    """Continue the same prompts with one or several models side by side, with tokens/s and memory under each."""
    with reporting(None, debug=debug, quiet=quiet):
        from lors_cli.errors import request_error
        from lors_cli.tools import generate as tool

        if bool(prompt) == bool(prompts):
            got = "both" if prompt else "neither"
            raise request_error("--prompt", "--prompt TEXT or --prompts FILE", got, "give one of them")
        texts = prompt or tool.read_prompts(Path(str(prompts)))
        options = tool.Options(
            packed=packed,
            chat_template=not no_chat_template,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            dtype=dtype,
            device=device,
            trust_remote_code=trust_remote_code,
        )
        results = tool.generate(models, texts, options, stream=not as_json)
        if as_json:
            console.result(json.dumps(results, indent=2, allow_nan=False))
