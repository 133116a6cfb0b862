"""One cell of a benchmark: all variants at one size, measured side by side."""

import gc
import logging
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lors_cli.benchmark import measure, roofline
from lors_cli.benchmark.roofline import Hardware, Setting, Shape
from lors_cli.benchmark.subject import Subject, inputs_for
from lors_cli.benchmark.variants import VARIANTS
from lors_cli.models import memory

log = logging.getLogger(__name__)

# There are more rounds than asked for, up to MOST_ROUNDS, while those of a cell take less than SHORT_SECONDS.
MOST_ROUNDS, SHORT_SECONDS = 20, 20.0
UNTIMED = 4  # of each variant besides the first timed unit: counting, memory, its profiler, the run before the first


def predicted(
    names: list[str], shape: Shape, setting: Setting, hardware: Hardware, *, optimizer: bool
) -> dict[str, Any]:
    """The roofline's figures for each variant."""
    return {
        name: {
            "predicted_ms": roofline.seconds(name, shape, setting, hardware) * 1e3,
            "predicted_peak_bytes": roofline.peak_bytes(name, shape, setting, optimizer=optimizer),
        }
        for name in names
    }


def unfit(
    shape: Shape, setting: Setting, device: torch.device, methods: dict[str, Any], limit: float, built: int
) -> str:
    """Why a cell cannot be measured here, empty if it can: too little memory, or more than `limit` seconds.

    `built` are the bytes of its weights that are already there.
    """
    free = memory.free(device)
    more = roofline.peak_bytes("frozen", shape, setting) - built
    if more > free:
        return f"needs {more / 1e9:.1f} GB, {free / 1e9:.1f} are free"
    units = {name: setting.accumulation if VARIANTS[name].cached else 1 for name in methods}
    least = sum(methods[name]["predicted_ms"] / 1e3 * units[name] for name in methods) * (UNTIMED + 1)
    if least > limit:
        return f"would take at least {least:.0f} s, {max(limit, 0):.0f} are left of --time-limit"
    return ""


def measured(
    base: nn.Module,
    setting: Setting,
    methods: dict[str, Any],
    *,
    rounds: int,
    deadline: float,
    advance: Callable[..., None],
) -> None:
    """Add each variant's figures to the predicted ones in `methods`: counts first, then rounds of one run each.

    Every round goes through the variants in the opposite order of the one before. There are at least `rounds`, and more
    while they take little time; only the first may begin after `deadline`. A variant that does not fit the memory gets
    no figures but says so.
    """
    first = next(base.parameters())
    inputs, target = inputs_for(base, setting, first.dtype, first.device)
    subjects: dict[str, Subject] = {}

    def prepare(name: str) -> None:
        subject = Subject(base, VARIANTS[name], setting)
        methods[name].update(measure.counts(subject, inputs, target))
        methods[name]["peak_bytes"] = measure.peak_bytes(subject, inputs, target)
        subject.cache.clear()
        subjects[name] = subject

    times: dict[str, list[float]] = {name: [] for name in methods}

    def run(name: str) -> None:
        times[name].append(measure.seconds(subjects[name], inputs, target))
        subjects[name].cache.clear()

    for name, figures in methods.items():
        _if_it_fits(prepare, name, figures)
        advance(name)
    started, turn = time.monotonic(), 0
    while turn < rounds or (turn < MOST_ROUNDS and time.monotonic() - started < SHORT_SECONDS):
        if turn and time.monotonic() > deadline:
            log.warning("bench: --time-limit was reached after %d of %d rounds", turn, rounds)
            break
        for name in list(subjects)[:: 1 if turn % 2 == 0 else -1]:
            if not _if_it_fits(run, name, methods[name]):
                del subjects[name]
            advance(name, steps=int(turn < rounds))
        turn += 1
    for name in subjects:
        median = statistics.median(times[name])
        methods[name]["ms"] = median * 1e3
        methods[name]["tokens_per_second"] = setting.tokens / median
        methods[name]["rounds_ms"] = [round(one * 1e3, 3) for one in times[name]]


def _if_it_fits(run: Callable[[str], None], name: str, figures: dict[str, Any]) -> bool:
    """Do ``run(name)``; where the memory is too small, `figures` say so instead of what they had."""
    try:
        run(name)
    except (RuntimeError, MemoryError) as error:
        if not memory.ran_out(error):
            raise
    else:
        return True
    for key in ("forward_flops", "backward_flops", "saved_bytes", "peak_bytes"):
        figures.pop(key, None)
    figures["skipped"] = "out of memory"
    log.warning("bench: %s does not fit into memory; the others go on", name)
    free_memory()
    return False


def free_memory() -> None:
    """Give back what nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
