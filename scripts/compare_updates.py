"""How much of a pruned linear's lost output each way to update its kept weights wins back, and in what time.

    python scripts/compare_updates.py ~/.cache/lors/smollm2-135m [--calibration c4.jsonl.gz] [--json FILE]

The inputs of the linears of some blocks are gathered on the dense model, for calibration and, on other windows, for
judging. All ways start from one mask and the weights that it keeps, Wanda's 2:4, and work in float32:

    least_squares   prune.update, with more and more steps of conjugate gradients
    admm            the same least squares by ADMM (Boza 2024, arXiv 2401.02938): columns scaled to norm 1, rho = 1
    obs             SparseGPT's update on the given mask: each removed weight is made up for by those right of it

A row of the table is the sum over linears: processor seconds of one thread with all factorisations, and the lost
energy, as a share of what the mask alone loses, on the calibration windows and on the others.
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from lors_cli import api
from lors_cli.config.fields import Dataset
from lors_cli.data import calibration
from lors_cli.models import linears
from lors_cli.pruning import least_squares, sparsegpt, wanda
from lors_cli.run import environment
from lors_cli.sequential.gather import gather
from lors_cli.sparsity.pattern import Pattern

PATTERN = Pattern.parse("2:4")
Update = Callable[[Tensor, Tensor, Tensor], Tensor]  # dense, pruned, Hessian -> the updated weight


def admm(dense: Tensor, pruned: Tensor, hessian: Tensor, *, steps: int, damping: float = 0.1) -> Tensor:
    """`steps` iterations on scaled columns; one inverse serves all rows."""
    scale = hessian.diagonal().sqrt()
    scale = torch.where(scale > 0, scale, 1)
    scaled = hessian / scale / scale[:, None]
    scaled.diagonal().add_(damping)
    inverse = torch.linalg.inv(scaled + torch.eye(len(scaled)))
    goal, mask = (dense * scale) @ scaled, pruned != 0
    kept, dual = pruned * scale, torch.zeros_like(pruned)
    for _ in range(steps):
        weight = (goal + kept - dual) @ inverse
        kept = (weight + dual).where(mask, 0)
        dual += weight - kept
    return kept / scale


def obs(dense: Tensor, pruned: Tensor, hessian: Tensor) -> Tensor:
    """SparseGPT's columns from left to right, with the removed weights given."""
    factor = sparsegpt.prepare(hessian).upper
    work, removed = dense.clone(), pruned == 0
    for start in range(0, work.shape[1], 128):
        block, rest = slice(start, start + 128), slice(start + 128, None)
        given, upper = removed[:, block], factor[block, block]
        work[:, block], errors = sparsegpt.prune_block(work[:, block], upper, Pattern(0.5), given)
        work[:, rest] -= errors @ factor[block, rest]
    return work


def fit(dense: Tensor, pruned: Tensor, hessian: Tensor, *, steps: int) -> Tensor:
    """The product's update without an early end."""
    return least_squares.update(dense, pruned, hessian, update_iterations=steps, update_tolerance=0).weight


WAYS: dict[str, Update] = {
    "mask alone": lambda dense, pruned, hessian: pruned,
    **{f"least_squares, {steps} steps": partial(fit, steps=steps) for steps in (2, 4, 8, 16, 32)},
    **{f"admm, {steps} steps": partial(admm, steps=steps) for steps in (2, 4, 8, 16, 32)},
    "obs": obs,
}


def problems(model: Any, windows: Tensor, blocks: list[int]) -> Iterator[tuple[str, list[Tensor], Tensor, Tensor]]:
    """Each input of some blocks: its name, the weights that it meets, and its two Hessians (calibration, other)."""
    found = linears.all_linears(model)
    chosen = {name: one for name, one in found.items() if any(f".{block}." in name for block in blocks)}
    halves = windows.chunk(2)
    inputs = [
        gather(chosen, ["hessian"], range(len(half)), lambda w, half=half: model(half[w : w + 1])) for half in halves
    ]
    for ours, others in zip(*inputs, strict=True):
        hessians = [shared.statistics["hessian"].value() for shared in (ours, others)]
        yield ours.linears[0], [chosen[name].weight.data for name in ours.linears], *hessians


def main() -> None:
    """Print the table, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--calibration", default="python-topics")
    parser.add_argument("--samples", type=int, default=32, help="windows for the fit, and as many for judging")
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--blocks", type=int, nargs="+", default=[2, 14, 27])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    model = api.load(options.model, dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    torch.set_num_threads(1)
    source = Dataset(path=options.calibration).source("calibration")
    windows = calibration.calibration_windows(
        source, None, tokenizer, options.length, 2 * options.samples, sampling="concat", seed=0
    )
    seconds: dict[str, float] = defaultdict(float)
    lost: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    with torch.no_grad():
        for name, weights, ours, others in problems(model, windows, options.blocks):
            print(name, flush=True)
            dense = torch.cat(weights)
            pruned = wanda.prune(dense, ours.diagonal().sqrt(), PATTERN)
            whole = [float(least_squares.energy(dense, hessian).sum()) for hessian in (ours, others)]
            for way, update in WAYS.items():
                started = time.process_time()
                weight = update(dense, pruned, ours)
                seconds[way] += time.process_time() - started
                for place, hessian in enumerate((ours, others)):
                    lost[way][place] += float(least_squares.energy(dense - weight, hessian).sum()) / whole[place]
    rows = {
        way: {
            "seconds": round(seconds[way], 3),
            "lost_calibration": round(lost[way][0] / lost["mask alone"][0], 4),
            "lost_other": round(lost[way][1] / lost["mask alone"][1], 4),
        }
        for way in WAYS
    }
    print(f"{'':26}{'seconds':>9}{'calibration':>13}{'other windows':>15}")
    for way, row in rows.items():
        print(f"{way:26}{row['seconds']:9.2f}{row['lost_calibration']:13.3f}{row['lost_other']:15.3f}")
    if options.json:
        settings = {key: value for key, value in vars(options).items() if key != "json"}
        options.json.write_text(
            json.dumps(
                {
                    "settings": settings,
                    "rows": rows,
                    "hardware": environment.hardware(),
                    "versions": environment.versions(),
                },
                indent=2,
            )
            + "\n"
        )


if __name__ == "__main__":
    main()
