"""kill -9 at random moments: a directory under its final name is complete, and the same command then finishes."""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from lors_cli import pipeline
from lors_cli.config.load import load
from lors_cli.run import manifest
from lors_cli.run.job import verified_digest

KILLS = 12
LORAM = {
    "prune": {"method": "structured_random", "ratio": 0.5, "keep_first": 1, "keep_last": 0},
    "align": {"dataset": "python-topics", "sequence_length": 32, "batch_size": 4, "max_steps": 8, "save_steps": 2},
    "train__method": "lora",
    "recover": {},
}


def killed_after(config: Path, stage: str, seconds: float) -> bool:
    """Run a stage in a child process and kill it; whether it was still running then."""
    child = os.fork()
    if child == 0:
        try:
            pipeline.run(load(config, []), [stage])
        finally:
            os._exit(0)
    time.sleep(seconds)
    running = os.waitpid(child, os.WNOHANG)[0] == 0
    if running:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return running


@pytest.mark.parametrize(
    ("stage", "output", "changes"),
    [
        ("prune", "pruned", {}),
        ("merge", "merged", {}),
        ("eval", "eval", {}),
        ("prune", "pruned", LORAM),
        ("align", "aligned", LORAM),
        ("recover", "recovered", LORAM),
    ],
    ids=lambda value: value if isinstance(value, str) else "loram" if value else "plain",
)
def test_killing_leaves_nothing_incomplete(
    lors: Callable[..., Result],
    write_config: Callable[..., Path],
    tmp_path: Path,
    stage: str,
    output: str,
    changes: dict[str, Any],
) -> None:
    config = write_config(**changes)
    for before in ("prune", *(["align"] if changes else []), "train", *(["recover"] if changes else []), "merge"):
        if before == stage:
            break
        lors(before, config)
    started = time.monotonic()
    lors(stage, config)
    duration = time.monotonic() - started
    final = tmp_path / "run" / output
    content = {path.name: path.read_bytes() for path in final.iterdir() if path.suffix == ".safetensors"}
    moments = random.Random(0)
    interrupted = 0
    for _ in range(KILLS):
        if final.exists():
            final.rename(tmp_path / f"done-{time.monotonic_ns()}")
        interrupted += killed_after(config, stage, moments.uniform(0, duration))
        if final.exists():
            assert manifest.read(final) is not None
            verified_digest(final)
    assert interrupted
    lors(stage, config)
    assert {path.name: path.read_bytes() for path in final.iterdir() if path.suffix == ".safetensors"} == content
    leftovers = [path.name for path in (tmp_path / "run").iterdir() if path.name.startswith(f".{output}")]
    assert leftovers == []
