"""A stopwatch for ways to do one thing, on a CPU or a GPU."""

import statistics
import time
from collections.abc import Callable, Mapping

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
