"""The results of `lors bench` as pictures."""

from pathlib import Path
from typing import Any

from lors_cli.benchmark.tables import AXES, Cell, measured, size
from lors_cli.benchmark.variants import VARIANTS


def draw(cells: list[Cell], directory: Path, title: str) -> list[Path]:
    """For each scope a picture of all methods at its first cell, and one over every axis along which cells vary."""
    import matplotlib

    matplotlib.use("Agg")
    made = []
    for scope in dict.fromkeys(cell["scope"] for cell in cells):
        mine = [cell for cell in cells if cell["scope"] == scope and measured(cell)]
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


def _colours() -> dict[str, Any]:
    """A colour for each method, ours in one, so that pictures can be compared."""
    from matplotlib import colormaps

    families = {"frozen": "Greys", "lora": "Oranges", "lors": "Blues", "sqft": "Greens", "spp": "Purples"}
    colours = {}
    for family, shades in families.items():
        members = [name for name in VARIANTS if name.split("-")[0] == family]
        for place, name in enumerate(members):
            colours[name] = colormaps[shades](0.85 - 0.5 * place / max(len(members), 1))
    return colours


def _bars(cell: Cell, path: Path, title: str) -> Path:
    from matplotlib import pyplot

    methods, colours = measured(cell), _colours()
    labels = [VARIANTS[name].label for name in methods]
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 0.34 * len(methods) + 1.8), sharey=True, layout="constrained")
    quantities = {
        "milliseconds a micro-batch": [one["ms"] for one in methods.values()],
        "peak memory, MB": [one["peak_bytes"] / 1e6 for one in methods.values()],
    }
    for axis, (words, values) in zip(axes, quantities.items(), strict=True):
        drawn = axis.barh(labels, values, color=[colours[name] for name in methods])
        axis.bar_label(drawn, [f"{value:.0f}" for value in values], padding=3, fontsize=8)
        axis.set_xlabel(words)
        axis.set_xlim(0, max(values) * 1.12)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()
    figure.suptitle(f"{title}\n{size(cell)}", fontsize=10)
    return _save(figure, path)


def _lines(cells: list[Cell], axis: str, words: str, path: Path, title: str) -> Path:
    from matplotlib import pyplot

    colours = _colours()
    figure, (speed, memory) = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for name in VARIANTS:
        points = [(cell[axis], measured(cell)[name]) for cell in cells if name in measured(cell)]
        if not points:
            continue
        style = {"color": colours[name], "label": VARIANTS[name].label, "marker": "o", "markersize": 4}
        style["linewidth"] = 2.5 if name.startswith("lors") else 1.2
        places = [place for place, _ in points]
        speed.plot(places, [figures["tokens_per_second"] for _, figures in points], **style)
        memory.plot(places, [figures["peak_bytes"] / 1e6 for _, figures in points], **style)
    for one, quantity in ((speed, "tokens a second"), (memory, "peak memory, MB")):
        one.set(xlabel=words, ylabel=quantity, ylim=(0, None))
        one.set_xticks([cell[axis] for cell in cells])
        one.grid(alpha=0.3)
        one.spines[["top", "right"]].set_visible(False)
    figure.legend(*speed.get_legend_handles_labels(), loc="outside right upper", fontsize=8, frameon=False)
    figure.suptitle(f"{title}\n{size(cells[0], without=axis)}", fontsize=10)
    return _save(figure, path)


def _save(figure: Any, path: Path) -> Path:
    from matplotlib import pyplot

    figure.savefig(path, dpi=130)
    pyplot.close(figure)
    return path
