"""A stopwatch for ways to do one thing, on a CPU or a GPU."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch


def wait(device: torch.device) -> None:
    """Wait until a GPU has done what it was given; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """The seconds that one run takes."""
    wait(device)
    started = time.perf_counter()
    run()
    wait(device)
    return time.perf_counter() - started


def computing_seconds(run: Callable[[], object], device: torch.device) -> float:
    """The same; on one thread of a CPU those that it computed, which other work on the machine disturbs less."""
    if device.type != "cpu" or torch.get_num_threads() > 1:
        return seconds(run, device)
    started = time.process_time()
    run()
    return time.process_time() - started


def captured(runs: Sequence[Callable[[], object]]) -> Callable[[], object]:
    """Replays, as one CUDA graph, what `runs` launch one after the other.

    Each runs once before, on a stream of its own as PyTorch asks for it, so that all kernels are compiled.
    """
    now, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(now)
    with torch.cuda.stream(side):
        for run in runs:
            run()
    now.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for run in runs:
            run()
    replay: Callable[[], object] = graph.replay
    return replay


def medians(
    ways: Mapping[str, Callable[[], object]], device: torch.device, *, rounds: int = 20, warm_up: int = 5
) -> dict[str, float]:
    """The median seconds of each way over `rounds` of one run each, after `warm_up` rounds that do not count."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(warm_up + rounds):
        for name, run in ways.items():
            taken = seconds(run, device)
            if turn >= warm_up:
                times[name].append(taken)
    return {name: statistics.median(values) for name, values in times.items()}
