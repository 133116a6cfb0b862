"""Perplexity against the bits of a weight of the blocks: dense and sparse models, quantised or not, recovered or not.

    python scripts/frontier.py --calibration c4.jsonl.gz --train c4_more.jsonl.gz --measure wikitext2.jsonl.gz \
        [--model smollm2-135m] [--group 64] [--steps 500] [--seeds 0 1 2] [--output runs/frontier]

Each point is one or several `lors run`; what is done already is not done again. The trained points (the sparse ones
with LoRS, and LoRA on dense int3) get the same tokens. ``frontier.json`` has every measurement, ``frontier.png`` the
plot: of trained points the mean over the seeds, and a line from the smallest to the largest.

Bits count everything that is stored of the linears of the blocks: codes or values of what is kept, scales, zero points,
and a bit for the place of every weight of a sparse model, as `lors pack` stores it. Adapters are merged, and so cost
nothing, except that of LoRA on int3, whose bits are added.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml


@dataclass
class Point:
    """A model: its name, the sections of its config, and which of its outputs is measured."""

    name: str
    sections: dict[str, Any]
    measured: str
    sparse: bool = False
    seeds: list[int] = field(default_factory=lambda: [0])


def points(asked: argparse.Namespace) -> Iterator[Point]:
    """All points of the plot."""
    text = {"dataset": asked.calibration, "samples": asked.samples, "sequence_length": asked.length}
    prune = {"method": asked.prune, "sparsity": "2:4", "calibration": text}
    gptq = {"method": "gptq", "group_size": asked.group, "calibration": text}
    train = {
        "rank": asked.rank,
        "dataset": {"path": asked.train, "format": "text"},
        "sequence_length": asked.length,
        "max_steps": asked.steps,
        "batch_size": asked.batch,
        "learning_rate": asked.learning_rate,
    }
    yield Point("dense bf16", {}, "dense")
    for bits in (8, 5, 4, 3):
        yield Point(f"dense rtn int{bits}", {"quantize": {**gptq, "method": "rtn", "bits": bits}}, "quantized")
        yield Point(f"dense gptq int{bits}", {"quantize": {**gptq, "bits": bits}}, "quantized")
    lora = {"quantize": {**gptq, "bits": 3}, "train": {**train, "method": "lora", "base": "int4"}}
    yield Point("dense gptq int3 + lora", lora, "tuned", seeds=asked.seeds)
    yield Point("2:4 bf16", {"prune": prune}, "pruned", sparse=True)
    lors = {"prune": prune, "train": {**train, "method": "lors"}, "merge": {}}
    yield Point("2:4 bf16 + lors", lors, "merged", sparse=True, seeds=asked.seeds)
    for bits in (8, 4, 3):
        both = {"prune": prune, "quantize": {**gptq, "bits": bits}}
        yield Point(f"2:4 gptq int{bits}", both, "quantized", sparse=True)
        if bits < 8:  # the form in which training holds codes has at most four bits
            tuned = {**train, "method": "lors", "base": "int4", "quantization_aware": True}
            whole = {**both, "train": tuned, "merge": {}}
            yield Point(f"2:4 gptq int{bits} + lors", whole, "merged", sparse=True, seeds=asked.seeds)
    joint = {"prune": {**prune, "method": "sparsegpt", "quantize": {"bits": 4, "group_size": asked.group}}}
    yield Point("2:4 and int4 jointly", joint, "pruned", sparse=True)


def measure(point: Point, seed: int, asked: argparse.Namespace) -> dict[str, Any]:
    """Run the stages of a point and read what came out."""
    directory = Path(asked.output) / point.name.replace(" ", "_").replace(":", "-") / str(seed)
    text = {"dataset": asked.measure, "sequence_length": asked.length, "samples": asked.windows}
    evaluate = {"models": [point.measured], "perplexity": text}
    config = {"model": asked.model, "output_dir": str(directory), "dtype": "bfloat16", "seed": seed}
    path = directory.with_suffix(".yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({**config, **point.sections, "eval": evaluate}, sort_keys=False))
    subprocess.run([sys.executable, "-m", "lors_cli", "run", str(path)], check=True)
    results = json.loads((directory / "eval/results.json").read_text())["models"][point.measured]
    return {
        "point": point.name,
        "seed": seed,
        "perplexity": results["perplexity"]["value"],
        "bits": bits_of(point, directory, asked),
        "config": str(path),
    }


def bits_of(point: Point, directory: Path, asked: argparse.Namespace) -> float:
    """The bits of a weight of the blocks."""
    folder = {"tuned": "quantized"}.get(point.measured, point.measured)
    if folder == "dense":
        return 16.0
    facts = json.loads((directory / folder / "lors.json").read_text())
    grid = facts.get("quantization") or (facts if "bits" in facts else {})
    kept, codes = 1 - facts["sparsity"], grid.get("bits", 16)
    scales = grid.get("bits_per_weight", codes) - codes
    # 2:4 has two codes in every four, though some may be zeros by now
    stored = 1 + codes * max(kept, 0.5) + scales if point.sparse else codes + scales
    return stored + (_adapter_bits(directory, facts) if point.measured == "tuned" else 0)


def _adapter_bits(directory: Path, facts: dict[str, Any]) -> float:
    trained = json.loads((directory / "adapter/lors.json").read_text())["trainable_parameters"]
    return float(16 * trained / sum(one["parameters"] for one in facts["modules"].values()))


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Perplexity over bits, both on logarithmic axes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    for name in dict.fromkeys(row["point"] for row in rows):
        values = [row["perplexity"] for row in rows if row["point"] == name]
        bits = next(row["bits"] for row in rows if row["point"] == name)
        colour = "tab:blue" if name.startswith("2:4") else "tab:orange"
        marker = "o" if "lor" in name else "x" if "rtn" in name else "s"
        middle = statistics.mean(values)
        spread = [[middle - min(values)], [max(values) - middle]]
        axes.errorbar(bits, middle, yerr=spread, fmt=marker, color=colour, capsize=3)
        axes.annotate(name, (bits, middle), textcoords="offset points", xytext=(5, 4), fontsize=7)
    axes.set(xscale="log", yscale="log", xlabel="bits of a weight of the blocks", ylabel="perplexity")
    axes.set_xticks([3, 4, 5, 6, 8, 9, 16], labels=["3", "4", "5", "6", "8", "9", "16"])
    figure.savefig(path, dpi=150, bbox_inches="tight")


def main() -> None:
    """Measure all points, or those whose names hold a word."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("calibration", "train", "measure"):
        parser.add_argument(f"--{name}", required=True, help="a data set, as configs name it")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--output", default="runs/frontier")
    parser.add_argument("--prune", default="sparsegpt", help="the pruning method")
    parser.add_argument("--only", default="", help="measure the points whose names hold this")
    numbers = {"group": 64, "samples": 32, "length": 512, "windows": 80, "rank": 16, "steps": 500, "batch": 8}
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    asked = parser.parse_args()
    rows = []
    for point in points(asked):
        if asked.only in point.name:
            rows += [measure(point, seed, asked) for seed in point.seeds]
            output = Path(asked.output)
            (output / "frontier.json").write_text(json.dumps({"settings": vars(asked), "rows": rows}, indent=2) + "\n")
            draw(rows, output / "frontier.png")
            print(f"{rows[-1]['bits']:6.3f} bits  {rows[-1]['perplexity']:9.3f}  {point.name}", flush=True)


if __name__ == "__main__":
    main()
