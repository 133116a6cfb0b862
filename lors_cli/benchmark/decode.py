"""``lors bench --decode``: what packed weights bring when a model writes token by token on a CPU, and what limits it.

Every linear's shape is timed alone, and whole tokens of the model, in medians of interleaved runs: PyTorch's dense
linear, a dense product of our own that reads as fast as the memory gives (the fair rival), and the packed layouts.
Copies of the weights are rotated, so that none is in a cache when its turn comes. On one thread times are of the CPU.
"""

import logging
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lors_cli import console
from lors_cli.artifacts import files
from lors_cli.benchmark import decode_tables
from lors_cli.benchmark.decode_subject import Subject, read_bytes, subject, variants
from lors_cli.errors import request_error
from lors_cli.kernels import packed as kernel
from lors_cli.models import load
from lors_cli.quantization.grid import BITS
from lors_cli.run import environment
from lors_cli.sparsity import packed
from lors_cli.sparsity.packed import Stored
from lors_cli.sparsity.pattern import Pattern

log = logging.getLogger(__name__)

ROTATED = 512 << 20  # bytes of copies of a weight, more than most caches hold
TOKENS = 8  # that are written in each round
WARM_UP = 1


@dataclass(frozen=True)
class Options:
    """What to measure.

    Attributes:
        subject: a named shape, a config.json, or what a config calls a model, packed or not.
        batch_sizes: sequences that are written at once.
        prompt_lengths: tokens that are read before.
        sparsity: of the random weights of a shape, 2:4 if left out; a model has its own.
        bits: of the codes to which the weights of a shape are rounded; a model has its own.
        dtype: float32 or bfloat16.
        rounds: timed runs of each way.
        time_limit: seconds after which nothing new begins.
        output_dir: where the results go; runs/bench/decode-... if left out.

    """

    subject: str
    batch_sizes: tuple[int, ...] = (1,)
    prompt_lengths: tuple[int, ...] = (128,)
    sparsity: str | None = None
    bits: int | None = None
    dtype: str = "bfloat16"
    rounds: int = 5
    time_limit: float = 1200.0
    output_dir: str | None = None


def decode(options: Options) -> dict[str, Any]:
    """Measure; write ``decode.json``, ``decode.md`` and ``decode.png``.

    Raises:
        RequestError: an option is wrong, or the model has too few zeros to be packed.

    """
    pattern = _checked(options)
    started, every = time.monotonic(), torch.get_num_threads()
    measured = subject(options.subject, pattern, load.DTYPES[options.dtype], options.bits)
    results: dict[str, Any] = {
        "settings": asdict(options),
        "hardware": environment.hardware(),
        "versions": environment.versions(),
        "own_code": kernel.library() is not None,
        "linears": [],
        "tokens": [],
        "not_measured": [],
    }
    counts = sorted({1, every})
    try:
        results["bandwidth"] = {count: _bandwidth(count) for count in counts} if results["own_code"] else {}
        with console.progress("bench: decode", len(measured.linears) + 1) as advance:
            for name, (weight, coded) in measured.linears.items():
                _late(started, options, results, name) or results["linears"].extend(
                    _linear(name, weight, coded, options, counts)
                )
                advance(name)
            if not _late(started, options, results, "whole tokens"):
                results["tokens"] = _tokens(measured, options, counts, results)
            advance("whole tokens")
    finally:
        torch.set_num_threads(every)
    name = Path(options.subject).name.removesuffix(".json")
    directory = Path(options.output_dir or f"runs/bench/decode-{name}-{options.dtype}")
    directory.mkdir(parents=True, exist_ok=True)
    files.write_json(directory / "decode.json", results)
    (directory / "decode.md").write_text(decode_tables.render(results) + "\n")
    if results["linears"] or results["tokens"]:
        log.info("bench: drew %s", decode_tables.draw(results, directory / "decode.png"))
    return results


def _late(started: float, options: Options, results: dict[str, Any], what: str) -> bool:
    late = time.monotonic() - started > options.time_limit
    if late:
        results["not_measured"].append({"what": what, "reason": "the time limit has passed"})
    return late


def _checked(options: Options) -> Pattern | None:
    for key, values in {
        "--batch-sizes": options.batch_sizes,
        "--sequence-lengths": options.prompt_lengths,
        "--rounds": (options.rounds,),
    }.items():
        if not values or min(values) < 1:
            raise request_error(key, "whole numbers of at least 1", ", ".join(map(str, values)), "correct it")
    if not options.time_limit >= 0:
        raise request_error("--time-limit", "seconds, at least 0", options.time_limit, "correct it")
    if options.dtype not in ("float32", "bfloat16"):
        raise request_error("--dtype", "float32 or bfloat16 with --decode", options.dtype, "correct it")
    if options.bits not in (None, *BITS):
        raise request_error("--bits", f"{BITS[0]} to {BITS[-1]}", options.bits, "correct it")
    try:
        return None if options.sparsity is None else Pattern.parse(options.sparsity)
    except ValueError as error:
        raise request_error("--sparsity", str(error), options.sparsity, "correct it") from None


def _bandwidth(threads: int) -> float:
    """Bytes a second that so many threads read."""
    torch.set_num_threads(threads)
    memory_ = kernel.in_huge_pages(torch.ones(ROTATED // 8, dtype=torch.long))
    times = [_seconds(lambda: kernel.read(memory_)) for _ in range(WARM_UP + 5)]
    return memory_.nbytes / statistics.median(times[WARM_UP:])


def _clock() -> float:
    """Seconds; of one thread those that it computed, which other work on the machine disturbs less."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def _seconds(run: Callable[[], object]) -> float:
    started = _clock()
    run()
    return _clock() - started


def _linear(
    name: str, weight: Tensor, coded: dict[str, Stored], options: Options, counts: list[int]
) -> list[dict[str, Any]]:
    """The cells of one shape: for each number of threads and each batch size the ways side by side."""
    shape = weight.shape[0], weight.shape[1]
    stored = {"torch": Stored(weight), **({"own dense": Stored(weight)} if kernel.library() else {})}
    stored |= {layout: found for layout in packed.LAYOUTS if (found := _packed(weight, layout))} | coded
    number = max(2, math.ceil(ROTATED / weight.nbytes))
    copies = {way: [_copied(one) for _ in range(number)] for way, one in stored.items()}
    cells = []
    for threads in counts:
        torch.set_num_threads(threads)
        for batch in options.batch_sizes:
            x = torch.randn(batch, shape[1]).to(weight.dtype)
            times: dict[str, list[float]] = {way: [] for way in stored}
            for turn in range(WARM_UP + max(options.rounds, number)):
                for way, those in copies.items():
                    one = those[turn % number]
                    run = partial(F.linear, x, one.values)
                    if way != "torch":
                        run = partial(kernel.multiply, one, shape, x)
                    times[way].append(_seconds(run))
            ways = {
                way: {"ms": 1e3 * statistics.median(taken[WARM_UP:]), "bytes": stored[way].bytes}
                for way, taken in times.items()
            }
            cells.append({"linear": name, "threads": threads, "batch_size": batch, "ways": ways})
    return cells


def _copied(stored: Stored) -> Stored:
    return Stored._make(None if part is None else kernel.in_huge_pages(part.clone()) for part in stored)


def _packed(weight: Tensor, layout: str) -> Stored | None:
    try:
        return packed.pack(weight, layout)
    except ValueError:  # it does not fit 2:4
        return None


@torch.inference_mode()
def _tokens(measured: Subject, options: Options, counts: list[int], results: dict[str, Any]) -> list[dict[str, Any]]:
    """The cells of whole tokens: for each number of threads, batch size and prompt length the ways side by side."""
    try:
        base: Any = measured.make()
    except MemoryError as error:
        results["not_measured"].append({"what": "whole tokens", "reason": str(error)})
        return []
    models = variants(base, measured.coded)
    cells = []
    for threads in counts:
        torch.set_num_threads(threads)
        for batch in options.batch_sizes:
            for length in options.prompt_lengths:
                times: dict[str, list[list[float]]] = {way: [] for way in models}
                for _ in range(WARM_UP + options.rounds):
                    for way, model in models.items():
                        times[way].append(_written(model, batch, length))
                ways = {}
                for way, taken in times.items():
                    prompt, *each = zip(*taken[WARM_UP:], strict=True)
                    flat = [seconds for step in each for seconds in step]
                    ways[way] = {
                        "prompt_ms": 1e3 * statistics.median(prompt),
                        "ms": 1e3 * statistics.median(flat),
                        "bytes": read_bytes(models[way]),
                    }
                size = {"threads": threads, "batch_size": batch, "prompt_length": length}
                cells.append({**size, "ways": ways})
    return cells


def _written(model: Any, batch: int, length: int) -> list[float]:
    """The seconds of reading a prompt, and of each token that is written after it."""
    vocabulary = model.get_input_embeddings().num_embeddings
    ids = torch.randint(vocabulary, (batch, length), generator=torch.Generator().manual_seed(0))
    times, past = [], None
    for _ in range(1 + TOKENS):
        started = _clock()
        made = model(input_ids=ids, past_key_values=past, use_cache=True, logits_to_keep=1)
        ids, past = made.logits[:, -1:].argmax(-1), made.past_key_values
        times.append(_clock() - started)
    return times
