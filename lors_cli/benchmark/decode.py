"""``lors bench --decode``: what packed weights bring when a model writes token by token, and what limits it.

Every linear's shape is timed alone, and whole tokens of the model, in medians of interleaved runs: PyTorch's dense
linear, a dense product of our own that reads as fast as the memory gives (the fair rival), and the packed layouts.
Copies of the weights are rotated, so that none is in a cache when its turn comes. On one thread times are of the CPU.
On CUDA PyTorch is measured, and what our kernels multiply there, as CUDA graphs: launches would hide the rest.
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
from lors_cli.benchmark import clock, decode_tables
from lors_cli.benchmark.decode_subject import Subject, read_bytes, subject, variants
from lors_cli.benchmark.writer import Writer
from lors_cli.errors import request_error
from lors_cli.kernels import gemv, huge_pages
from lors_cli.kernels import packed as kernel
from lors_cli.models import load
from lors_cli.models.device import check_dtype, pick_device
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
        device: auto (a GPU if there is one), cpu, cuda or cuda:N.
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
    device: str = "auto"
    dtype: str = "bfloat16"
    rounds: int = 5
    time_limit: float = 1200.0
    output_dir: str | None = None


def decode(options: Options) -> dict[str, Any]:
    """Measure; write ``decode.json``, ``decode.md`` and ``decode.png``.

    Raises:
        RequestError: an option is wrong, or the model has too few zeros to be packed.

    """
    pattern, device = _checked(options), _device(options)
    started, every = time.monotonic(), torch.get_num_threads()
    measured = subject(options.subject, pattern, load.DTYPES[options.dtype], device, options.bits)
    results: dict[str, Any] = {
        "settings": asdict(options),
        "device": device.type,
        "hardware": environment.hardware(),
        "versions": environment.versions(),
        "own_code": device.type == "cuda" or kernel.library() is not None,
        "linears": [],
        "tokens": [],
        "not_measured": [],
    }
    counts = sorted({1, every}) if device.type == "cpu" else [1]
    try:
        results["bandwidth"] = {count: _bandwidth(count, device) for count in counts} if results["own_code"] else {}
        with console.progress("bench: decode", len(measured.linears) + 1) as advance:
            for name, (weight, coded) in measured.linears.items():
                _late(started, options, results, name) or results["linears"].extend(
                    _linear(name, weight, coded, options, counts, device)
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


def _device(options: Options) -> torch.device:
    device = pick_device(options.device)
    if device.type == "mps" and options.device == "auto":
        return torch.device("cpu")
    if device.type not in ("cpu", "cuda"):
        raise request_error("--device", "cpu or cuda with --decode", options.device, "use cpu")
    check_dtype(options.dtype, device, "--dtype")
    if device.type == "cuda":
        torch.cuda.set_device(device)  # graphs are captured on the current one
    return device


def _bandwidth(threads: int, device: torch.device) -> float:
    """Bytes a second that so many threads, or a GPU, read."""
    torch.set_num_threads(threads)
    memory_ = huge_pages.placed(torch.ones(ROTATED // 8, dtype=torch.long, device=device))
    read = partial(kernel.read if device.type == "cpu" else torch.amax, memory_)
    times = [clock.computing_seconds(read, device) for _ in range(WARM_UP + 5)]
    return memory_.nbytes / statistics.median(times[WARM_UP:])


def _linear(
    name: str, weight: Tensor, coded: dict[str, Stored], options: Options, counts: list[int], device: torch.device
) -> list[dict[str, Any]]:
    """The cells of one shape: for each number of threads and each batch size the ways side by side."""
    shape, on_gpu = (weight.shape[0], weight.shape[1]), device.type == "cuda"
    stored = {"torch": Stored(weight)} | ({"own dense": Stored(weight)} if not on_gpu and kernel.library() else {})
    stored |= {layout: found for layout in packed.LAYOUTS if (found := _packed(weight, layout))} | coded
    number = max(2, math.ceil(ROTATED / weight.nbytes))
    copies = {way: [_copied(one) for _ in range(number)] for way, one in stored.items()}
    cells = []
    for threads in counts:
        torch.set_num_threads(threads)
        for batch in options.batch_sizes:
            x = torch.randn(batch, shape[1]).to(weight)
            runs = {way: run for way, those in copies.items() if (run := _products(way, those, shape, x))}
            turns, each = max(options.rounds, number), 1
            if on_gpu:  # one graph multiplies with all copies
                runs = {way: [clock.captured(products)] for way, products in runs.items()}
                turns, each = options.rounds, number
            times: dict[str, list[float]] = {way: [] for way in runs}
            for turn in range(WARM_UP + turns):
                for way, products in runs.items():
                    times[way].append(clock.computing_seconds(products[turn % len(products)], device) / each)
            ways = {
                way: {"ms": 1e3 * statistics.median(taken[WARM_UP:]), "bytes": stored[way].bytes}
                for way, taken in times.items()
            }
            cells.append({"linear": name, "threads": threads, "batch_size": batch, "ways": ways})
    return cells


def _products(way: str, copies: list[Stored], shape: tuple[int, int], x: Tensor) -> list[Callable[[], object]]:
    """The product of x with each copy of a weight; none where no kernel of ours multiplies it."""
    if way == "torch":
        return [partial(F.linear, x, one.values) for one in copies]
    if x.device.type == "cuda" and not gemv.available(copies[0], len(x)):
        return []
    return [partial(kernel.multiply, one, shape, x) for one in copies]


def _copied(stored: Stored) -> Stored:
    return Stored._make(None if part is None else huge_pages.placed(part.clone()) for part in stored)


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
                writers = {way: Writer(model, batch, length, TOKENS) for way, model in models.items()}
                times: dict[str, list[list[float]]] = {way: [] for way in models}
                for _ in range(WARM_UP + options.rounds):
                    for way, writer in writers.items():
                        times[way].append(writer.run())
                ways: dict[str, dict[str, float]] = {}
                for way, taken in times.items():
                    prompt, *each = zip(*taken[WARM_UP:], strict=True)
                    flat = [seconds for step in each for seconds in step]
                    ways[way] = {
                        "prompt_ms": 1e3 * statistics.median(prompt),
                        "ms": 1e3 * statistics.median(flat),
                        "bytes": read_bytes(models[way]),
                    }
                size = {"threads": threads, "batch_size": batch, "prompt_length": length}
                graphs = [way for way, writer in writers.items() if writer.captured]
                cells.append({**size, "ways": ways, "cuda_graphs": graphs})
    return cells
