"""``lors generate``: the same prompts through one or several models, side by side, with what each of them costs."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TextStreamer

from lors_cli import console
from lors_cli.artifacts.packed_model import is_packed
from lors_cli.errors import UnmeasurableError, request_error
from lors_cli.evaluation import generating
from lors_cli.evaluation.generating import PromptError
from lors_cli.evaluation.perplexity import NOT_FINITE
from lors_cli.models import load, source
from lors_cli.models.device import check_dtype, pick_device
from lors_cli.models.packed import load_packed
from lors_cli.run import manifest, seal

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """How to generate.

    Attributes:
        packed: run all models packed, as those that `lors pack` made run anyway.
        chat_template: put each prompt as a user's turn into the tokenizer's chat template, if it has one.
        max_new_tokens: at most so many for each prompt.
        temperature: 0 takes the most probable token; else the logits are divided by it and a token is drawn.
        top_p: draw from the most probable tokens that together have this probability.
        seed: of what is drawn, the same for each model and prompt.
        dtype: auto, float32, bfloat16 or float16.
        device: auto, cpu, cuda or cuda:N.
        trust_remote_code: whether code that a directory brings may run.

    """

    packed: bool = False
    chat_template: bool = True
    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    dtype: str = "auto"
    device: str = "auto"
    trust_remote_code: bool = False


@dataclass
class _Model:
    """A model that was asked for: its name, its directory, its tokenizer, and the prompts as it gets them."""

    name: str
    directory: Path
    tokenizer: PreTrainedTokenizerBase
    prompts: list[list[int]]


def read_prompts(path: Path) -> list[str]:
    """The prompts in a text file, one a line; empty lines are none, which is said.

    Raises:
        RequestError: there is no such file, it is not text in UTF-8, or has no prompt.

    """
    expected = "a text file in UTF-8 with a prompt on each line"
    try:
        lines = path.expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise request_error("--prompts", expected, f"{path}: {error}", "correct the path, or the file") from None
    prompts = [line for line in lines if line.strip()]
    if not prompts:
        raise request_error("--prompts", expected, f"{path}, which has none", "write a prompt on a line of its own")
    if empty := len(lines) - len(prompts):
        log.info("%s: %d empty lines are left out", path, empty)
    return prompts


def generate(models: Sequence[str], prompts: Sequence[str], options: Options, *, stream: bool) -> list[dict[str, Any]]:
    """Continue each prompt with each model, all of which are in memory together.

    Args:
        models: directories, packed or not, hub ids, or what else a config calls a model.
        prompts: texts.
        options: how.
        stream: print the texts as they come, and what they cost.

    Returns:
        for each prompt the "prompt" and its "answers": "model", "text", "tokens", "prompt_tokens", "prompt_seconds"
        until the first token, "tokens_per_second" after it, and "weight_bytes" of the model in memory.

    Raises:
        RequestError: a model, a prompt or an option is wrong, found before any weights are loaded.
        LorsError: a published directory was edited, but for its weights, whose bytes are not compared.

    """
    device = _checked(prompts, options)
    asked = [_read(name, prompts, options) for name in models]
    loaded: dict[Path, PreTrainedModel] = {}
    for one in asked:
        if one.directory not in loaded:
            source.complete(one.directory)
            if made := manifest.read(one.directory):
                seal.verify(one.directory, made, weights=False)
            make = load_packed if options.packed or is_packed(one.directory) else load.load_model
            trust = options.trust_remote_code
            loaded[one.directory] = make(one.directory, options.dtype, device, trust_remote_code=trust)
    results = []
    for number, prompt in enumerate(prompts):
        if stream:
            console.result(f"prompt {number + 1}: {prompt}")
        answers = []
        for one in asked:
            if stream:
                console.result(f"\n--- {one.name}")
            answers.append(_answer(one, loaded[one.directory], one.prompts[number], options, stream=stream))
            if stream:
                console.result(_cost(answers[-1]))
        results.append({"prompt": prompt, "answers": answers})
        if stream:
            console.result("")
    return results


def _checked(prompts: Sequence[str], options: Options) -> torch.device:
    """The device, where the options and prompts are right."""
    if not prompts or not all(prompt.strip() for prompt in prompts):
        raise request_error(
            "--prompt", "a text", "an empty one" if prompts else "none", "--prompt TEXT, or --prompts FILE"
        )
    if options.max_new_tokens < 1:
        raise request_error("--max-new-tokens", "at least 1", options.max_new_tokens, "correct it")
    if not 0 <= options.temperature < float("inf"):
        raise request_error("--temperature", "0 (greedy) or more", options.temperature, "correct it")
    if not 0 < options.top_p <= 1:
        raise request_error("--top-p", "above 0 and at most 1", options.top_p, "correct it")
    if options.top_p < 1 and options.temperature == 0:
        remedy = "set --temperature too, or leave --top-p out"
        raise request_error("--top-p", "a --temperature above 0: without it nothing is drawn", options.top_p, remedy)
    if options.dtype != "auto" and options.dtype not in load.DTYPES:
        raise request_error("--dtype", f"auto, {', '.join(load.DTYPES)}", options.dtype, "correct it")
    device = pick_device(options.device)
    check_dtype(options.dtype, device, "--dtype")
    return device


def _read(name: str, prompts: Sequence[str], options: Options) -> _Model:
    """Find a model, and make its tokens of the prompts.

    Raises:
        RequestError: there is no such model, its chat template fails, or a prompt leaves no room for an answer.

    """
    trust = options.trust_remote_code
    directory = source.resolve(name, "MODEL", packed=True)
    skeleton = load.skeleton(directory, options.dtype, trust_remote_code=trust, quantized=True)
    tokenizer = load.load_tokenizer(directory, skeleton, trust_remote_code=trust)
    templated = options.chat_template and tokenizer.chat_template is not None
    if options.chat_template and not templated:
        log.info("%s has no chat template: it gets the prompts as they are", name)
    positions, tokens = load.positions(skeleton), []
    for number, prompt in enumerate(prompts):
        tokens.append(_tokens(tokenizer, prompt, name, templated=templated))
        if positions and len(tokens[-1]) + options.max_new_tokens > positions:
            expected = f"at most {positions} tokens, the positions of {name}, for a prompt and its answer"
            got = f"{len(tokens[-1])} in prompt {number + 1} and --max-new-tokens {options.max_new_tokens}"
            raise request_error("--max-new-tokens", expected, got, "lower it, or shorten the prompt")
    return _Model(name, directory, tokenizer, tokens)


def _tokens(tokenizer: PreTrainedTokenizerBase, prompt: str, name: str, *, templated: bool) -> list[int]:
    try:
        return generating.prompt_tokens(tokenizer, prompt, templated=templated)
    except PromptError as error:
        expected, remedy = "a prompt that every model takes", "write another"
        if templated:
            remedy += ", or give it to the models as it is with --no-chat-template"
        raise request_error("--prompt", expected, f"for {name}: {error}", remedy) from None


class _Streamer(TextStreamer):  # type: ignore[misc]
    """Notes when each token came, and prints the text if it is `shown`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, shown: bool) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.shown, self.times = shown, [time.perf_counter()]

    def put(self, value: Any) -> None:
        """Take the prompt, and then each token."""
        if not self.next_tokens_are_prompt:
            self.times.append(time.perf_counter())
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Print what is complete."""
        if self.shown:
            console.result(text, end="\n" if stream_end else "")


def _answer(
    one: _Model, model: PreTrainedModel, prompt: list[int], options: Options, *, stream: bool
) -> dict[str, Any]:
    def fail(*_: int) -> None:
        raise UnmeasurableError(f"{one.name}: the logits of an answer are not finite; {NOT_FINITE}")

    streamer = _Streamer(one.tokenizer, shown=stream)
    torch.manual_seed(options.seed)
    chosen = generating.settings(model, options.max_new_tokens, temperature=options.temperature, top_p=options.top_p)
    made = generating.answer(model, prompt, chosen, fail, streamer=streamer)
    started, first, *_ = times = streamer.times
    rate = (len(times) - 2) / (times[-1] - first) if len(times) > 2 else None
    return {
        "model": one.name,
        "text": one.tokenizer.decode(made, skip_special_tokens=True),
        "tokens": len(made),
        "prompt_tokens": len(prompt),
        "prompt_seconds": first - started,
        "tokens_per_second": rate,
        "weight_bytes": weight_bytes(model),
    }


def weight_bytes(model: PreTrainedModel) -> int:
    """The bytes of a model's parameters in memory, each counted once."""
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}
    return sum(storages.values())


def _cost(answer: dict[str, Any]) -> str:
    rate = answer["tokens_per_second"]
    speed = "" if rate is None else f", {rate:.1f} tokens/s"
    return (
        f"[{answer['tokens']} tokens{speed}; {answer['prompt_seconds']:.2f} s for the {answer['prompt_tokens']} tokens"
        f" of the prompt; {answer['weight_bytes'] / 1e6:.0f} MB of weights]"
    )
