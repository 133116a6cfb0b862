"""The plots of the HTML page, as SVG that is the same for the same runs and asks nothing of a network."""

import io
import math
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Any

from lors_cli.reporting import palette
from lors_cli.reporting.columns import ACCURACY, PERPLEXITY
from lors_cli.reporting.lines import Key, Value
from lors_cli.reporting.origin import DENSE, PRUNED, TUNED
from lors_cli.reporting.rows import Row, clean
from lors_cli.reporting.table import Entry, Heading, Table
from lors_cli.run import manifest
from lors_cli.run.facts import Merged, Pruned

MOST_BARS, MOST_PROFILES = 16, 6
GREYS = {DENSE: "#777777", PRUNED: "#909090"}  # colours, of which pruned models have shades
LEGEND_LINE = 0.22  # inches
LONGEST = 48  # characters of a name in a picture; the table has them whole
STYLE = {
    "svg.hashsalt": "lors",  # ids follow from the content
    "svg.fonttype": "none",
    "text.parse_math": False,  # a name may hold dollars
    "font.family": "sans-serif",
    "font.size": 11,  # to be read where a phone shows the plot smaller
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), palette.INK),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "none"),  # that of the page
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-4, 7),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
}
# matplotlib's names for parts of a figure, which nothing refers to and which several figures on a page would share
PART = re.compile(r' id="(?:[A-Za-z]+[A-Za-z0-9.]*_)+\d+"')
METADATA = re.compile(r"<metadata>.*?</metadata>", re.DOTALL)
NAMESPACE = re.compile(r' xmlns(?::\w+)?="[^"]*"')  # HTML knows them


def values(entry: Entry) -> Callable[[Heading], Value | None]:
    """Gives the number of an entry in a column, None where it has none that can be drawn."""
    drawn = {cell.key: cell.value for cell in entry.cells if cell.value and math.isfinite(cell.value.value)}
    return lambda heading: drawn.get(heading.key)


def colours(table: Table) -> list[str]:
    """The colour of each line, in all plots."""
    drawn, before = [], Counter[str]()
    for entry in table.entries:
        kind = entry.line.row.kind
        named = kind if kind in GREYS else method_of(entry)
        base = GREYS.get(kind) or palette.of_method(named)
        drawn.append(palette.shade(base, before[named]))
        before[named] += kind != DENSE  # which is one colour in all plots
    return drawn


def names(table: Table) -> list[str]:
    """What the lines are called where those of all models stand together."""
    models = [clean(entry.line.row.origin.dense) for entry in table.entries]
    labels = [entry.line.label for entry in table.entries]
    if len(set(models)) > 1:
        labels = [f"{model}: {label}" for model, label in zip(models, labels, strict=True)]
    return labels


def short(name: str, longest: int = LONGEST) -> str:
    """The name, without its middle if it is long: the settings that tell it from others stand at its end."""
    return name if len(name) <= longest else f"{name[: longest // 3]}…{name[1 - 2 * longest // 3 :]}"


def rest(number: int) -> str:
    """What a plot does not show, in words."""
    return f" {number} more models are not drawn." if number > 0 else ""


def figure(width: float, height: float, panels: int = 1) -> tuple[Any, Any]:
    """A figure and its axes, one below the other."""
    from matplotlib.figure import Figure  # without pyplot, which takes longer to import

    empty = Figure((width, height), layout="constrained")
    return empty, empty.subplots(panels, 1)


def finished(drawn: Any, axes: Any) -> str:
    """A figure with a legend of its axes below it, as SVG."""
    handles, labels = axes.get_legend_handles_labels()
    width, height = drawn.get_size_inches()
    columns = max(int(width // (0.09 * max(map(len, labels), default=1) + 0.5)), 1)
    drawn.set_size_inches(width, height + LEGEND_LINE * -(-len(labels) // columns))
    drawn.legend(handles, labels, loc="outside lower left", frameon=False, fontsize=10, ncols=columns)
    return svg(drawn)


def svg(drawn: Any) -> str:
    """A figure as an element of an HTML page."""
    stream = io.StringIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # letters that matplotlib's font lacks are the browser's to draw
        drawn.savefig(stream, format="svg", metadata={"Date": None})
    text = stream.getvalue()
    text = METADATA.sub("", text[text.index("<svg") :])
    return NAMESPACE.sub("", PART.sub("", text)).replace(palette.INK, "currentColor")


def accuracies(table: Table) -> Iterator[tuple[str, str, str]]:
    """For each dense model the accuracies of what was made of it, side by side."""
    headings = [heading for heading in table.headings if heading.key.kind == ACCURACY]
    colour = colours(table)
    by_dense: dict[str, list[tuple[int, Entry]]] = defaultdict(list)
    for number, entry in enumerate(table.entries):
        by_dense[entry.line.row.origin.dense].append((number, entry))
    for dense, entries in by_dense.items():
        measured = [(number, entry) for number, entry in entries if any(map(values(entry), headings))]
        shown = measured[:MOST_BARS]
        used = [heading for heading in headings if any(values(entry)(heading) for _, entry in shown)]
        if not used:
            continue
        drawing, axes = figure(max(6.0, 0.16 * len(used) * (len(shown) + 2) + 2.5), 4)
        width = 0.85 / len(shown)
        for order, (number, entry) in enumerate(shown):
            drawn = list(map(values(entry), used))
            axes.bar(
                [n + (order - (len(shown) - 1) / 2) * width for n, value in enumerate(drawn) if value],
                [100 * value.value for value in drawn if value],
                width,
                yerr=[100 * (value.error or 0.0) for value in drawn if value],
                color=colour[number],
                error_kw={"elinewidth": 0.8, "ecolor": palette.INK},
                label=short(entry.line.label),
            )
        marked = [f"{short(heading.name, LONGEST // 2)} {heading.mark}".strip() for heading in used]
        axes.set_xticks(range(len(used)), marked, rotation=20, ha="right")
        axes.set(ylabel="accuracy, %")
        text = f"With the errors of the table.{rest(len(measured) - MOST_BARS)}"
        yield f"Accuracy, {clean(dense)}", text, finished(drawing, axes)


def sparsities(table: Table) -> Iterator[tuple[str, str, str]]:
    """Sparsity from block to block, for each way in which the models' zeros are spread."""
    profiles: dict[tuple[tuple[str, float], ...], str] = {}
    for name, entry in zip(names(table), table.entries, strict=True):
        for row in entry.line.rows:
            if any(sparsity for _, sparsity in _profile(row)):  # not of whole models, nor of those that are smaller
                profiles.setdefault(_profile(row), name)
    profiles = {
        profile: name for profile, name in profiles.items() if len({_block(module) for module, _ in profile}) > 1
    }
    if not profiles:
        return
    shown = list(profiles.items())[:MOST_PROFILES]
    drawing, axes = figure(8, 2.4 * len(shown) + 0.4, len(shown))
    for (profile, label), panel in zip(shown, axes if len(shown) > 1 else [axes], strict=True):
        for place, linears in manifest.by_place({name: {"name": name, "s": s} for name, s in profile}).items():
            blocks = [(_block(linear["name"]), linear["s"]) for linear in linears]
            panel.plot(
                [b for b, _ in blocks],
                [s for _, s in blocks],
                marker="o",
                markersize=3,
                label=place,
                color=palette.of_place(place),
            )
        panel.set(title=short(label), ylabel="sparsity", ylim=(-0.03, 1.03))
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=10)  # its own linears
    panel.set_xlabel("block")
    text = f"Models with the same sparsity in every module are drawn once.{rest(len(profiles) - MOST_PROFILES)}"
    yield "Sparsity per module", text, svg(drawing)


def _profile(row: Row) -> tuple[tuple[str, float], ...]:
    facts = row.origin.made and row.origin.made.facts
    modules = (facts.modules if isinstance(facts, Pruned | Merged) else None) or {}
    named = {name: float(facts["sparsity"]) for name, facts in modules.items()}
    return tuple(sorted(named.items(), key=lambda one: (_block(one[0]), palette.order(one[0].rpartition(".")[2]))))


def _block(module: str) -> int:
    return next((int(part) for part in module.split(".") if part.isdigit()), 0)


def memory(table: Table) -> Iterator[tuple[str, str, str]]:
    """A picture for each perplexity: what the training needed, and what it gave."""
    needs = Heading(Key("peak_bytes"), "")
    for heading in (heading for heading in table.headings if heading.key.kind == PERPLEXITY):
        points: dict[str, list[tuple[float, float, bool]]] = defaultdict(list)
        for entry in (entry for entry in table.entries if entry.line.row.kind == TUNED):
            value, needed = map(values(entry), (heading, needs))
            if value and needed:
                points[method_of(entry)].append((needed.value / 1e9, value.value, entry.line.row.cost.on_gpu))
        if len({point for of_method in points.values() for point in of_method}) < 2:  # a dot alone says nothing
            continue
        drawing, axes = figure(8, 4)
        for method, of_method in points.items():
            colour = palette.of_method(method)
            for sign, on_gpu in (("o", False), ("s", True)):
                shown = [(gigabytes, perplexity) for gigabytes, perplexity, where in of_method if where == on_gpu]
                axes.plot([x for x, _ in shown], [y for _, y in shown], sign, color=colour)
            axes.plot([], [], "o", color=colour, label=method)
        axes.set(xlabel="peak memory in training, GB", ylabel="perplexity")
        title = f"Perplexity against memory {f'[{heading.mark}]' if heading.mark else ''}".strip()
        yield title, "Circles: memory of the process on the host; squares: of the GPU.", finished(drawing, axes)


def method_of(entry: Entry) -> str:
    """The method by which the adapter of a line was trained."""
    return clean(str((entry.line.row.origin.train or {}).get("method") or "?"))
