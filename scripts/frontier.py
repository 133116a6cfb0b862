"""Perplexity over the bits of a weight of the blocks, from a sweep like scripts/reproduce/frontier.yaml.

    python scripts/frontier.py runs/frontier docs/results/frontier.png [--json docs/results/frontier.json]

A start is a point, and each row that was trained on it another: the mean over the seeds, and a line from the smallest
to the largest. Bits count everything that is stored of the linears of the blocks: codes or values of what is kept,
scales, zero points, and a bit for the place of every weight of a sparse model, as `lors pack` stores it. A merged
adapter costs nothing; of one that stays beside its model the bits are added, and the plot has a hollow marker without
them, too.
"""

import argparse
import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SPARSE, DENSE = "tab:blue", "tab:orange"


@dataclass
class Point:
    """A model, `bits` of a weight and the perplexity of each seed; `adapter_bits` are those of an adapter beside it."""

    name: str
    sparse: bool
    bits: float
    perplexities: list[float]
    adapter_bits: float = 0.0


def facts_of(start: Path) -> tuple[dict[str, Any], bool]:
    """What the manifest of the last model of a start says, and whether its blocks are sparse."""
    made = [
        json.loads((start / name / "lors.json").read_text())
        for name in ("pruned", "quantized")
        if (start / name).is_dir()
    ]
    return made[-1], made[0]["stage"] == "prune"


def bits_of(facts: dict[str, Any], *, sparse: bool) -> float:
    """The bits of a weight of the blocks, as they are packed."""
    grid = facts.get("quantization") or (facts if "bits" in facts else {})
    codes = grid.get("bits", 16)
    scales = grid.get("bits_per_weight", codes) - codes
    # a kept weight that was rounded to zero is no longer stored
    return 1 + codes * (1 - facts["sparsity"]) + scales if sparse else codes + scales


def points(sweep: Path) -> list[Point]:
    """All models that the sweep has measured; the model as it is has 16 bits."""
    results = json.loads((sweep / "results.json").read_text())
    found = []
    for name, models in results["starts"].items():
        for measured, result in models.items():
            facts, sparse = ({}, False) if measured == "dense" else facts_of(sweep / name)
            bits = bits_of(facts, sparse=sparse) if facts else 16.0
            found.append(Point(name, sparse, bits, [result["perplexity"]["value"]]))
    for row in results["rows"]:
        start, arm = row["start"], row["arm"]
        facts, sparse = facts_of(sweep / start)
        runs = [run["models"] for run in row["runs"] if "models" in run]
        values = [one["perplexity"]["value"] for run in runs for one in run.values()]
        adapter = 0.0
        if runs and "tuned" in runs[0]:
            trained = json.loads(next((sweep / start / arm).glob("*/adapter/lors.json")).read_text())[
                "trainable_parameters"
            ]
            adapter = 16 * trained / sum(one["parameters"] for one in facts["modules"].values())
        found.append(Point(f"{start} + {arm}", sparse, bits_of(facts, sparse=sparse), values, adapter))
    return found


def draw(found: list[Point], path: Path) -> None:
    """Draw the points, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 6))
    labelled: list[tuple[float, float]] = []
    for point in sorted(found, key=lambda one: -statistics.mean(one.perplexities)):
        middle, colour = statistics.mean(point.perplexities), SPARSE if point.sparse else DENSE
        spread = [[middle - min(point.perplexities)], [max(point.perplexities) - middle]]
        marker = "o" if " + " in point.name else "x" if "rtn" in point.name else "s"
        bits = point.bits + point.adapter_bits
        axes.errorbar(bits, middle, yerr=spread, fmt=marker, color=colour, capsize=3)
        near = [one for one in labelled if abs(one[0] / bits - 1) < 0.25 and abs(one[1] / middle - 1) < 0.06]
        labelled.append((bits, middle))
        offset = (6, 3 - 8 * len(near))  # below the names of those that lie there
        axes.annotate(point.name, (bits, middle), textcoords="offset points", xytext=offset, fontsize=7)
        if point.adapter_bits:
            axes.plot([point.bits, bits], [middle, middle], color=colour, linestyle=":", linewidth=1)
            axes.plot(point.bits, middle, marker, color=colour, fillstyle="none")
    axes.set(xscale="log", yscale="log", xlabel="bits of a weight of the blocks", ylabel="perplexity")
    ticks = [3, 4, 5, 6, 8, 9, 16]
    axes.set_xticks(ticks, labels=[str(tick) for tick in ticks])
    axes.minorticks_off()
    low, high = axes.get_ylim()
    levels = [tick for tick in (25, 30, 40, 50, 70, 100, 150, 200, 300, 500, 1000) if low <= tick <= high]
    axes.set_yticks(levels, labels=[str(tick) for tick in levels])
    for label, colour in (("sparse", SPARSE), ("dense", DENSE)):
        axes.plot([], [], "s", color=colour, label=label)
    axes.legend(title="circles: trained, crosses: rounding to nearest", fontsize=8, title_fontsize=8)
    figure.savefig(path, dpi=150, bbox_inches="tight")


def main() -> None:
    """Read the sweep, print its points, and draw them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, help="the output directory of the sweep")
    parser.add_argument("plot", type=Path, help="a picture to write, such as frontier.png")
    parser.add_argument("--json", type=Path, help="a file for the points")
    asked = parser.parse_args()
    found = sorted(points(asked.sweep), key=lambda point: point.bits)
    for point in found:
        spread = f" ± {statistics.stdev(point.perplexities):.2f}" if len(point.perplexities) > 1 else ""
        adapter = f" + {point.adapter_bits:.2f}" if point.adapter_bits else ""
        print(f"{point.bits:6.3f}{adapter} bits  {statistics.mean(point.perplexities):8.2f}{spread}  {point.name}")
    draw(found, asked.plot)
    if asked.json:
        asked.json.write_text(json.dumps([asdict(point) for point in found], indent=1) + "\n")


if __name__ == "__main__":
    main()
