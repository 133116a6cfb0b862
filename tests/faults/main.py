"""Kills and faults at the events of many kinds of runs: the command line, and the process that forks them."""

import argparse
import functools
import importlib
import importlib.metadata
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.faults import shim, works

SUMMARY = "summary.json"
ENVIRONMENT = {
    **dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "OMP_NUM_THREADS"), "1"),
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONDONTWRITEBYTECODE": "1",
    "LORS_NATIVE": "0",  # a box starts with an empty cache, and each run on codes would compile for longer than it runs
}


def main() -> int:
    """Do what the command line says; 1 if anything was found, 130 if it was cut off."""
    parser = argparse.ArgumentParser(prog="faults.sh", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=1000, help="how many")
    parser.add_argument(
        "--faults", type=int, default=500, help="how many faults of reads and writes, and damaged files"
    )
    parser.add_argument("--stages", nargs="*", default=[], help="commands or kinds of runs; all if left out")
    parser.add_argument("--jobs", type=int, default=1, help="how many processes share the kinds of runs")
    parser.add_argument("--json", type=Path, help="a file for the summary, which is kept up to date all the time")
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)  # where a worker with the library works
    arguments = parser.parse_args()
    # a shell that starts this in the background has it, and so all runs, ignore Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if arguments.place:
        _worker(arguments)
        return 0
    if reason := shim.missing():
        print(f"skipped: {reason}")
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return _workers(arguments)


def _workers(arguments: argparse.Namespace) -> int:
    """Share the kinds of runs among processes that have the library loaded, and add up what they report."""
    chosen = works.named(arguments.stages)
    memory = Path("/dev/shm")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None, prefix="lors-faults-") as name:
        place = Path(name)
        library = shim.build(place)
        running = []
        for number in range(arguments.jobs):
            own = place / str(number)
            own.mkdir()
            share = chosen[number :: arguments.jobs]
            amounts = [f"{round(total * len(share) / len(chosen))}" for total in (arguments.kills, arguments.faults)]
            command = [sys.executable, "-m", "tests.faults", "--place", str(own), "--json", str(own / SUMMARY)]
            command += ["--seed", str(arguments.seed), "--kills", amounts[0], "--faults", amounts[1], "--stages"]
            places = {"HF_HOME": str(own / "hub"), "MPLCONFIGDIR": str(own / "matplotlib")}
            environment = {**os.environ, **ENVIRONMENT, **places, "LD_PRELOAD": str(library)}
            running.append(subprocess.Popen([*command, *(work.name for work in share)], env=environment))
        summary: dict[str, Any] = {}

        def add_up() -> None:
            summary.update(_added_up(place, arguments.seed, round(time.monotonic() - started)))
            summary["cut off"] = any(process.returncode != 0 for process in running)
            if arguments.json:
                arguments.json.write_text(json.dumps(summary, indent=1))

        try:
            while any(process.poll() is None for process in running):
                time.sleep(1)
                add_up()
        except KeyboardInterrupt:
            pass
        finally:
            for process in running:
                process.terminate()
                process.wait()
            add_up()
    print(json.dumps({key: value for key, value in summary.items() if key != "findings"}, indent=1))
    return 130 if summary["cut off"] else 1 if summary["findings"] else 0


def _added_up(place: Path, seed: int, seconds: int) -> dict[str, Any]:
    """One summary of what all processes did until now."""
    summaries = [json.loads(path.read_text()) for path in place.glob(f"*/{SUMMARY}")]
    counts: Counter[str] = sum((Counter(one["counts"]) for one in summaries), Counter())
    findings = [finding for one in summaries for finding in one["findings"]]

    def by(way: str, part: int) -> dict[str, int]:
        found: Counter[str] = Counter()
        for key, number in counts.items():
            if key.startswith(f"{way}: "):
                found[key.split(": ")[part]] += number
        return dict(sorted(found.items()))

    return {
        "seed": seed,
        "seconds": seconds,
        "kills": sum(by("kill", 1).values()),
        "runs killed twice": sum(by("killed twice", 1).values()),
        "kills after which the run ended as if nothing had been": sum(by("finished", 1).values()),
        "faults": sum(by("fault", 1).values()),
        "found": len(findings),
        "kills by signal": by("kill", 2),
        "kills by kind of run": by("kill", 1),
        "faults by kind of fault": by("fault", 2),
        "faults by kind of run": by("fault", 1),
        "findings": findings,
    }


def _worker(arguments: argparse.Namespace) -> None:
    import torch

    from tests.faults import faults
    from tests.faults.box import Box, frozen
    from tests.faults.disturb import Disturber

    torch.set_num_threads(1)
    box = Box(arguments.place)
    works.prepare(box.root)
    box.keep(works.START)
    chosen = works.named(arguments.stages)
    disturber = Disturber(box, random.Random(arguments.seed), chosen, arguments.json)
    with frozen():
        _import_all(box, works.needed(chosen))
    _leave_out_what_only_takes_time()
    with frozen():
        disturber.measure(works.needed(chosen))
        steps = max(1, min(arguments.kills, arguments.faults) // 4)  # so that both are done when it is cut off
        for step in range(1, steps + 1):
            disturber.kill(arguments.kills * step // steps)
            faults.disturb(disturber, arguments.faults * step // steps)


def _leave_out_what_only_takes_time() -> None:
    """Keep runs from what does nothing to files below the box.

    That is: asking ``pip`` what is installed, reading what versions there are, counting the bytes of activations, and
    tidying up at their end what libraries keep in memory.
    """
    if evaluator := sys.modules.get("lm_eval.evaluator"):
        evaluator.add_env_info = lambda results: None  # type: ignore[attr-defined]
    importlib.metadata.version = functools.cache(importlib.metadata.version)
    if estimate := sys.modules.get("lors_cli.training.activations"):
        estimate.saved_bytes = lambda *arguments: None  # type: ignore[attr-defined]
    for finalizer in weakref.finalize._registry:  # type: ignore[attr-defined]
        finalizer.atexit = False


def _import_all(box: Any, chosen: list[works.Work]) -> None:
    """Import here what the commands import, so that each of their forks need not, and keep their results.

    Raises:
        RuntimeError: a command fails even when nothing disturbs it.

    """
    from tests.faults.disturb import undisturbed

    rehearsed = set()
    for work in chosen:
        if work.stage not in rehearsed:
            box.rehearse(work.arguments, work.after)
            rehearsed.add(work.stage)
        box.restore(work.after)
        ended = undisturbed(box, work, modules=True)
        box.keep(work.name)
        for name in ended.modules:
            if name not in sys.modules:
                with suppress(Exception):
                    importlib.import_module(name)
