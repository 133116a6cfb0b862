"""The results of `lors bench` as tables and plots."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lors_cli.benchmark.variants import VARIANTS
from lors_cli.console import markdown_table

AXES = {"sequence_length": "tokens in a sequence", "rank": "rank", "batch_size": "sequences in a micro-batch"}

Cell = dict[str, Any]


def tables(cells: Iterable[Cell]) -> str:
    """A table for each cell, in Markdown."""
    return "\n\n".join(_table(cell) for cell in cells)


def _table(cell: Cell) -> str:
    point = ", ".join(f"{key.replace('_', ' ')} {cell[key]}" for key in AXES)
    timed = _measured(cell)
    head = ["method", "ms", "x frozen", "x LoRA", "tokens/s", "GFLOP", "saved MB", "peak MB", "roofline ms", "and MB"]
    if not timed:
        head = ["method", "roofline ms", "x frozen", "x LoRA", "roofline MB"]
    rows = []
    for name, found in cell["methods"].items():
        predicted = [f"{found['predicted_ms']:.1f}", f"{found['predicted_peak_bytes'] / 1e6:.0f}"]
        if not timed:
            ratios = [_ratio(found, cell, to, "predicted_ms") for to in ("frozen", "lora")]
            cells = [predicted[0], *ratios, predicted[1]]
        elif name in timed:
            cells = [
                f"{found['ms']:.1f}",
                *(_ratio(found, cell, to, "ms") for to in ("frozen", "lora")),
                f"{found['tokens_per_second']:.0f}",
                f"{(found['forward_flops'] + found['backward_flops']) / 1e9:.1f}",
                f"{found['saved_bytes'] / 1e6:.1f}",
                f"{found['peak_bytes'] / 1e6:.0f}",
                *predicted,
            ]
        else:
            cells = [found["skipped"], *[""] * 6, *predicted]
        rows.append([f"{name}: {VARIANTS[name].label}", *cells])
    return f"{cell['scope']}, {point}\n\n{markdown_table(head, rows)}"


def _ratio(found: dict[str, Any], cell: Cell, to: str, key: str) -> str:
    other = cell["methods"].get(to, {}).get(key)
    return f"{found[key] / other:.2f}" if other else ""


def plots(cells: list[Cell], directory: Path, title: str) -> list[Path]:
    """For each scope a picture of all methods at its first cell, and one over every axis along which cells vary."""
    import matplotlib

    matplotlib.use("Agg")
    made = []
    for scope in dict.fromkeys(cell["scope"] for cell in cells):
        mine = [cell for cell in cells if cell["scope"] == scope and _measured(cell)]
        if not mine:
            continue
        made.append(_bars(mine[0], directory / f"{scope}_methods.png", title))
        for axis, words in AXES.items():
            others = [key for key in AXES if key != axis]
            line = [cell for cell in mine if all(cell[key] == mine[0][key] for key in others)]
            if len(line) > 1:
                path = directory / f"{scope}_{axis}.png"
                made.append(_lines(sorted(line, key=lambda cell: cell[axis]), axis, words, path, title))
    return made


def _measured(cell: Cell) -> dict[str, dict[str, Any]]:
    return {name: found for name, found in cell["methods"].items() if "ms" in found}


def _colours() -> dict[str, Any]:
    """A colour for each method, ours in one, so that pictures can be compared."""
    from matplotlib import colormaps

    families = {"frozen": "Greys", "lora": "Oranges", "lors": "Blues", "sqft": "Greens", "spp": "Purples"}
    found = {}
    for family, shades in families.items():
        members = [name for name in VARIANTS if name.split("-")[0] == family]
        for place, name in enumerate(members):
            found[name] = colormaps[shades](0.85 - 0.5 * place / max(len(members), 1))
    return found


def _bars(cell: Cell, path: Path, title: str) -> Path:
    from matplotlib import pyplot

    found, colours = _measured(cell), _colours()
    labels = [VARIANTS[name].label for name in found]
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 0.34 * len(found) + 1.8), sharey=True, layout="constrained")
    quantities = [
        ("milliseconds a micro-batch", [one["ms"] for one in found.values()], "{:.0f}"),
        ("peak memory, MB", [one["peak_bytes"] / 1e6 for one in found.values()], "{:.0f}"),
    ]
    for axis, (words, values, text) in zip(axes, quantities, strict=True):
        drawn = axis.barh(labels, values, color=[colours[name] for name in found])
        axis.bar_label(drawn, [text.format(value) for value in values], padding=3, fontsize=8)
        axis.set_xlabel(words)
        axis.set_xlim(0, max(values) * 1.12)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()
    point = ", ".join(f"{key.replace('_', ' ')} {cell[key]}" for key in AXES)
    figure.suptitle(f"{title}\n{cell['scope']}, {point}", fontsize=10)
    return _save(figure, path)


def _lines(cells: list[Cell], axis: str, words: str, path: Path, title: str) -> Path:
    from matplotlib import pyplot

    colours = _colours()
    figure, (speed, memory) = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for name in VARIANTS:
        points = [(cell[axis], _measured(cell)[name]) for cell in cells if name in _measured(cell)]
        if not points:
            continue
        style = {"color": colours[name], "label": VARIANTS[name].label, "marker": "o", "markersize": 4}
        style["linewidth"] = 2.5 if name.startswith("lors") else 1.2
        places = [place for place, _ in points]
        speed.plot(places, [found["tokens_per_second"] for _, found in points], **style)
        memory.plot(places, [found["peak_bytes"] / 1e6 for _, found in points], **style)
    for one, quantity in ((speed, "tokens a second"), (memory, "peak memory, MB")):
        one.set(xlabel=words, ylabel=quantity, ylim=(0, None))
        one.set_xticks([cell[axis] for cell in cells])
        one.grid(alpha=0.3)
        one.spines[["top", "right"]].set_visible(False)
    figure.legend(*speed.get_legend_handles_labels(), loc="outside right upper", fontsize=8, frameon=False)
    rest = ", ".join(f"{key.replace('_', ' ')} {cells[0][key]}" for key in AXES if key != axis)
    figure.suptitle(f"{title}\n{cells[0]['scope']}, {rest}", fontsize=10)
    return _save(figure, path)


def _save(figure: Any, path: Path) -> Path:
    from matplotlib import pyplot

    figure.savefig(path, dpi=130)
    pyplot.close(figure)
    return path
