"""The results of `lors bench` as tables."""

from collections.abc import Iterable
from typing import Any

from lors_cli.benchmark.variants import VARIANTS
from lors_cli.console import markdown_table

AXES = {"sequence_length": "tokens in a sequence", "rank": "rank", "batch_size": "sequences in a micro-batch"}

Cell = dict[str, Any]


def render(results: dict[str, Any]) -> str:
    """The results as tables for people."""
    lines = [f"roofline of {results['roofline']['name']}"]
    for one in results.get("not_measured", []):
        lines.append(f"not measured: {', '.join(str(one[key]) for key in ('scope', *AXES))}: {one['reason']}")
    return "\n\n".join([*lines, tables(results["cells"])])


def tables(cells: Iterable[Cell]) -> str:
    """A table for each cell, in Markdown."""
    return "\n\n".join(_table(cell) for cell in cells)


def _table(cell: Cell) -> str:
    timed, rows = measured(cell), []
    head = ["method", "ms", "x frozen", "x LoRA", "tokens/s", "GFLOP", "saved MB", "peak MB", "roofline ms", "and MB"]
    if not timed:
        head = ["method", "roofline ms", "x frozen", "x LoRA", "roofline MB"]
    for name, figures in cell["methods"].items():
        predicted = [f"{figures['predicted_ms']:.1f}", f"{figures['predicted_peak_bytes'] / 1e6:.0f}"]
        if not timed:
            ratios = [_ratio(figures, cell, to, "predicted_ms") for to in ("frozen", "lora")]
            cells = [predicted[0], *ratios, predicted[1]]
        elif name in timed:
            cells = [
                f"{figures['ms']:.1f}",
                *(_ratio(figures, cell, to, "ms") for to in ("frozen", "lora")),
                f"{figures['tokens_per_second']:.0f}",
                f"{(figures['forward_flops'] + figures['backward_flops']) / 1e9:.1f}",
                f"{figures['saved_bytes'] / 1e6:.1f}",
                f"{figures['peak_bytes'] / 1e6:.0f}",
                *predicted,
            ]
        else:
            cells = [figures["skipped"], *[""] * 6, *predicted]
        rows.append([f"{name}: {VARIANTS[name].label}", *cells])
    return f"{size(cell)}\n\n{markdown_table(head, rows)}"


def _ratio(figures: dict[str, Any], cell: Cell, to: str, key: str) -> str:
    other = cell["methods"].get(to, {}).get(key)
    return f"{figures[key] / other:.2f}" if other else ""


def size(cell: Cell, without: str = "") -> str:
    """The scope and the size of a cell in words; `without` is the axis that is left out."""
    return ", ".join([cell["scope"], *(f"{key.replace('_', ' ')} {cell[key]}" for key in AXES if key != without)])


def measured(cell: Cell) -> dict[str, dict[str, Any]]:
    """The methods of a cell that were measured, with their figures."""
    return {name: figures for name, figures in cell["methods"].items() if "ms" in figures}
