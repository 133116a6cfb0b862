"""How well adapters recover a pruned model, each method with a learning-rate search of the same size.

    python scripts/quality.py runs/quality --json docs/results/quality_cpu.json
    python scripts/quality.py runs/other --method sparsegpt --sparsity 0.5 --train rows.jsonl --held-out text.jsonl

Every arm (a method and a start) is trained at each of its rates with the first seed; the rate with the lowest
perplexity of the merged model on one half of the held-out rows is chosen; all seeds are then trained at that rate and
judged by the other half. "Equal time" repeats that with as many steps as the arm does in the time that lors takes, its
start included. All models are judged after `lors merge`, so LoRA with its mask (LoRA*). Two arms are trials: LoRS with
the exact masked gradient at every fourth step (exact-4), and with an estimate of it from every fourth token (tokens-4;
how long that takes says nothing, as it is not made fast). Started again, the script goes on. To share the work, time
the steps first (--stage times), on a machine that does nothing else; then start several with other --arms.
"""

import argparse
import json
import math
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lors_cli import adapters, console, pipeline
from lors_cli.adapters.lors import LoRS
from lors_cli.artifacts import files
from lors_cli.config.schema import Config
from lors_cli.data import windows
from lors_cli.data.sources import Source
from lors_cli.errors import DivergedError
from lors_cli.evaluation.perplexity import perplexity
from lors_cli.models import load
from lors_cli.run import environment, manifest
from lors_cli.training.effective_cache import TrainingCache

GRADIENT, RANDOM = [1e-3, 2e-3, 4e-3], [4e-3, 8e-3, 1.6e-2]
ARMS: dict[str, tuple[dict[str, Any], list[float]]] = {
    "lors": ({"method": "lors", "init": "gradient"}, GRADIENT),
    "lors random": ({"method": "lors", "init": "random"}, RANDOM),
    "sqft random": ({"method": "sqft", "init": "random"}, RANDOM),
    "sqft gradient": ({"method": "sqft", "init": "gradient"}, GRADIENT),
    # the fastest way to compute it, so that equal time is fair
    "spp": ({"method": "spp", "formulation": "merged"}, [4e-2, 8e-2, 1.6e-1]),
    "lora*": ({"method": "lora", "init": "random"}, [2e-3, 4e-3, 8e-3]),
    "exact-4": ({"method": "lors", "init": "random", "formulation": "exact-4"}, RANDOM),
    "tokens-4": ({"method": "lors", "init": "random", "formulation": "tokens-4"}, RANDOM),
}
EXTENSIONS = 2  # rates that a search may add at its edge
ROUNDS, TIMED_STEPS = 3, 4
NOT_OF_A_RUN = {"folder", "arms", "stage", "json", "seeds", "steps"}  # the others are the same for a whole folder
Settings = dict[str, Any]


class Trial(LoRS):
    """LoRS that can also have SQFT's gradient, the exact masked one; its start is that of LoRS."""

    step: int | None = None  # of the training, None before the first
    every = 4

    def exact(self, x: Tensor) -> Tensor:
        """The same Y, which autograd differentiates as it is: dA = s B^T (dY^T X * M), dB = s (dY^T X * M) A^T."""
        weight = self.linear.weight
        merged = weight + self.scale * (self.lora_B @ self.lora_A) * (weight != 0)
        return torch.nn.functional.linear(x, merged, self.linear.bias)


class ExactAtTimes(Trial):
    """The exact gradient at every `every`-th step."""

    def forward(self, x: Tensor) -> Tensor:
        """X (..., C) to Y (..., R)."""
        if self.step is None or self.step % self.every:
            return super().forward(x)
        return self.exact(x)


class ExactOnTokens(Trial):
    """An estimate of the exact masked gradient, from every `every`-th token.

    It adds `every` times the difference between both gradients there, so the R x C product is over those tokens alone;
    the mean over the choices of tokens is the exact gradient.
    """

    def forward(self, x: Tensor) -> Tensor:
        """X (N, T, C) to Y (N, T, R)."""
        y = super().forward(x)
        if self.step is None:
            return y
        chosen = slice(self.step % self.every, None, self.every)
        some = x[..., chosen, :].detach()
        difference = self.exact(some) - super().forward(some)  # 0 but for rounding
        correction = torch.zeros_like(y)
        correction[..., chosen, :] = self.every * (difference - difference.detach())
        return y + correction


def register_trials() -> None:
    """Make the trials formulations that a config can name, and let them know the step."""
    adapters.METHODS["lors"].formulations.update({"exact-4": ExactAtTimes, "tokens-4": ExactOnTokens})
    before_step = TrainingCache.before_step

    def and_count(self: TrainingCache, step: int) -> None:
        Trial.step = step
        before_step(self, step)

    TrainingCache.before_step = and_count  # type: ignore[method-assign]


class Study:
    """All runs of one pruned model."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.folder = options, Path(options.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.check_settings()
        rows = list(Source(path=options.held_out, key="--held-out", split=options.held_out_split).texts())
        self.halves = {"select": self.folder / "select.jsonl", "test": self.folder / "test.jsonl"}
        for path, part in zip(self.halves.values(), (rows[::2], rows[1::2]), strict=True):
            if not path.exists():
                path.write_text("".join(json.dumps({"text": text}) + "\n" for text in part))
        self.pruned = Path(options.pruned or self.folder / "pruned")
        if not options.pruned:
            pipeline.run(self.config(self.folder, {}), ["prune"])

    def check_settings(self) -> None:
        """Refuse a folder whose runs were made with other settings."""
        settings = {key: value for key, value in vars(self.options).items() if key not in NOT_OF_A_RUN}
        file = self.folder / "settings.json"
        before = json.loads(file.read_text()) if file.is_file() else settings
        if before != settings:
            other = {key: value for key, value in before.items() if settings.get(key) != value}
            sys.exit(f"{self.folder} holds runs with {other}; take another folder")
        files.write_json(file, settings)

    def config(self, output: Path, train: Settings) -> Config:
        """The config of a run."""
        o = self.options
        text = {"dataset": o.calibration, "samples": 32, "sequence_length": o.sequence_length}
        pruned = {} if not train else {"input": str(self.pruned)}
        base = {"dataset": o.train, "sequence_length": o.sequence_length, "batch_size": o.batch_size, "method": "lors"}
        return Config.model_validate(
            {
                "model": o.model,
                "output_dir": str(output),
                "dtype": o.dtype,
                "seed": train.pop("seed", 0),
                "prune": {"method": o.method, "sparsity": o.sparsity, "calibration": text},
                "train": {**base, **pruned, **train},
                "merge": {"apply_mask": True} if train.get("method") == "lora" else {},
            }
        )

    def measure(self, directory: Path) -> dict[str, float]:
        """The perplexities of a model directory on both halves."""
        model = load.load_model(directory, self.options.dtype, load.pick_device("auto"))
        tokenizer = load.load_tokenizer(directory)
        found = {}
        for half, path in self.halves.items():
            source = Source(path=str(path), key="--held-out")
            length = self.options.sequence_length
            found[half] = perplexity(model, windows.concatenated(source, tokenizer, length, 24, at_most=True))["value"]
        return found

    def settings(self, arm: str, rate: float, seed: int, steps: int) -> Settings:
        """The train section of a run."""
        return {**ARMS[arm][0], "learning_rate": rate, "max_steps": steps, "seed": seed}

    def run(self, arm: str, rate: float, seed: int, steps: int) -> dict[str, Any]:
        """The figures of one run, made now if they are not there."""
        output = self.folder / folder_name(arm) / f"{rate:g}_seed{seed}_steps{steps}"
        figures = output / "quality.json"
        if not figures.is_file():
            print(f"{arm}, learning rate {rate:g}, seed {seed}, {steps} steps", flush=True)
            Trial.step = None
            try:
                pipeline.run(self.config(output, self.settings(arm, rate, seed, steps)), ["train", "merge"])
                found = self.measure(output / "merged")
            except DivergedError as error:  # a result too: this rate is too high
                print(error, flush=True)
                found = dict.fromkeys(self.halves, math.inf)
            files.write_json(figures, {"arm": arm, "rate": rate, "seed": seed, "steps": steps, **found})
            for file in (output / "merged").glob("*.safetensors"):
                file.unlink()  # 0.5 GB each
        result: dict[str, Any] = json.loads(figures.read_text())
        return result

    def arm(self, name: str) -> dict[str, Any]:
        """Search, beyond the grid while its edge is best, then all seeds at the best rate."""
        seeds, steps, rates = self.options.seeds, self.options.steps, list(ARMS[name][1])
        for _ in range(1 + EXTENSIONS):
            search = [self.run(name, rate, seeds[0], steps) for rate in rates]
            best = min(search, key=lambda run: run["select"])["rate"]
            if best == rates[-1]:
                rates.append(2 * best)
            elif best == rates[0]:
                rates.insert(0, best / 2)
            else:
                break
        runs = [self.run(name, best, seed, steps) for seed in seeds]
        at_edge = best in (search[0]["rate"], search[-1]["rate"])
        return {"rate": best, "at_edge_of_grid": at_edge, "search": search, "runs": runs, **summary(runs)}

    def times(self) -> dict[str, dict[str, float]]:
        """Seconds of a step and of everything before the first, medians of rounds in which the arms take turns."""
        file, names = self.folder / "times.json", ["lors", *(arm for arm in self.options.arms if arm != "lors")]
        kept: dict[str, dict[str, float]] = json.loads(file.read_text()) if file.is_file() else {}
        if set(names) <= kept.keys():
            return kept
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
        for number in range(ROUNDS):
            for name in names:
                output = self.folder / "timing" / f"{number}-{folder_name(name)}"
                shutil.rmtree(output, ignore_errors=True)  # what was interrupted tells no time
                Trial.step = None
                settings = self.settings(name, ARMS[name][1][0], 0, TIMED_STEPS) | {"save_steps": TIMED_STEPS + 1}
                pipeline.run(self.config(output, settings), ["train"])
                adapter = manifest.read(output / "adapter") or {}
                step = adapter["tokens"] / TIMED_STEPS / adapter["tokens_per_second"]
                found[name].append((step, adapter["seconds"] - TIMED_STEPS * step))
        medians = {
            name: dict(zip(("step", "before"), map(statistics.median, zip(*times, strict=True)), strict=True))
            for name, times in found.items()
        }
        files.write_json(file, medians)
        return medians

    def in_time(self, name: str, rate: float, times: dict[str, dict[str, float]]) -> dict[str, Any]:
        """The arm with as many steps as fit the time that lors takes, each start counted."""
        budget = self.options.steps * times["lors"]["step"] + times["lors"]["before"]
        steps = max(round((budget - times[name]["before"]) / times[name]["step"]), 1)
        runs = [self.run(name, rate, seed, steps) for seed in self.options.seeds]
        return {"steps": steps, "runs": runs, **summary(runs)}


def folder_name(arm: str) -> str:
    """The arm as a part of a path."""
    return arm.replace("*", "").replace(" ", "-")


def summary(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Mean and standard deviation over seeds."""
    tests = [run["test"] for run in runs]
    mean = statistics.mean(tests)
    return {"test": mean, "deviation": statistics.stdev(tests) if len(tests) > 1 and math.isfinite(mean) else math.nan}


def table(found: dict[str, Any]) -> str:
    """Perplexities on the test half."""
    rows = []
    for arm, row in found["arms"].items():
        timed = row.get("in_time")
        equal = f"{timed['test']:.2f} ± {timed['deviation']:.2f} ({timed['steps']} steps)" if timed else "-"
        rate = f"{row['rate']:g}{' (edge)' if row['at_edge_of_grid'] else ''}"
        seconds = f"{found['times'][arm]['step']:.2f}" if timed else "-"
        rows.append([arm, rate, f"{row['test']:.2f} ± {row['deviation']:.2f}", seconds, equal])
    head = ["arm", "learning rate", "equal tokens", "s a step", "equal time"]
    return console.markdown_table(head, rows)


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--pruned", help="a pruned model to take instead of pruning one")
    parser.add_argument("--method", default="wanda")
    parser.add_argument("--sparsity", default="2:4")
    parser.add_argument("--calibration", default="python-topics")
    parser.add_argument("--train", default="python-topics")
    parser.add_argument("--held-out", default="python-topics")
    parser.add_argument("--held-out-split", default=None, help="test for python-topics, none for a file")
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--arms", default=",".join(ARMS))
    stages = {"times": "seconds of a step alone", "runs": "without equal time", "all": "both"}
    described = "; ".join(f"{name}: {what}" for name, what in stages.items())
    parser.add_argument("--stage", choices=stages, default="all", help=described)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.seeds = [int(seed) for seed in options.seeds.split(",")]
    options.arms = options.arms.split(",")
    if options.held_out == "python-topics" and options.held_out_split is None:
        options.held_out_split = "test"
    console.setup(-1)
    register_trials()
    study = Study(options)
    times = study.times() if options.stage != "runs" else {}
    if options.stage == "times":
        return
    found: dict[str, Any] = {"settings": vars(options) | {"json": str(options.json)}, "arms": {}}
    found |= {
        "pruned": study.measure(study.pruned),
        "versions": environment.versions(),
        "hardware": environment.hardware(),
    }
    for name in options.arms:
        found["arms"][name] = study.arm(name)
    if times:
        found["times"] = times
        for name, row in found["arms"].items():
            row["in_time"] = study.in_time(name, row["rate"], times)
    print(f"pruned: {found['pruned']['test']:.2f}\n{table(found)}")
    if options.json:
        files.write_json(options.json, found)


if __name__ == "__main__":
    main()
