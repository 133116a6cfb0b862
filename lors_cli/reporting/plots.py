"""The plots of the HTML page, as SVG that is the same for the same runs and asks nothing of a network."""

import io
import json
import math
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lors_cli.artifacts import manifest
from lors_cli.reporting.columns import ACCURACY, PERPLEXITY
from lors_cli.reporting.labels import clean
from lors_cli.reporting.lines import Key, Value
from lors_cli.reporting.provenance import DENSE, PRUNED, TUNED
from lors_cli.reporting.rows import Row
from lors_cli.reporting.table import Entry, Heading, Table

MOST_CURVES, MOST_BARS, MOST_PROFILES = 20, 16, 6
POINTS = 300  # of a curve; more cannot be seen
LONGEST = 48  # characters of a name in a picture; the table has them whole
STYLE = {
    "svg.hashsalt": "lors",  # ids follow from the content
    "svg.fonttype": "none",
    "text.parse_math": False,  # a name may hold dollars
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
}
# matplotlib's names for parts of a figure, which nothing refers to and which several figures on a page would share
PART = re.compile(r' id="(?:[A-Za-z]+[A-Za-z0-9.]*_)+\d+"')
METADATA = re.compile(r"<metadata>.*?</metadata>", re.DOTALL)
NAMESPACE = re.compile(r' xmlns(?::\w+)?="[^"]*"')  # HTML knows them


def all_of(table: Table) -> Iterator[tuple[str, str, str]]:
    """A title, an explanation and an SVG for each plot for which there are data."""
    import matplotlib

    matplotlib.use("Agg")
    with matplotlib.rc_context(STYLE):
        yield from _losses(table)
        yield from _accuracies(table)
        yield from _sparsities(table)
        yield from _memory(table)


def _losses(table: Table) -> Iterator[tuple[str, str, str]]:
    names, curves = _names(table), []
    for number, entry in enumerate(table.entries):
        logs = [_log(row.origin.adapter_directory) for row in entry.line.rows]
        if logs := [log for log in logs if log["loss"] or log["eval_loss"]]:
            curves.append((number, logs))
    if not curves:
        return
    figure, axes = _figure(8, 4)
    for number, logs in curves[:MOST_CURVES]:
        for log in logs:
            axes.plot(*_thinned(log["loss"]), color=_colour(table, number), linewidth=0.8, alpha=0.6)
            held_out = {"linewidth": 1.6, "marker": "o", "markersize": 3}
            axes.plot(*_thinned(log["eval_loss"]), color=_colour(table, number), **held_out)
        axes.plot([], [], color=_colour(table, number), label=names[number])
    axes.set(xlabel="tokens seen", ylabel="loss, nats per token")
    _legend(figure, axes)
    yield "Loss", f"In training (thin) and held out (points).{_rest(len(curves) - MOST_CURVES)}", _svg(figure)


def _log(directory: Path | None) -> dict[str, list[tuple[float, float]]]:
    """The losses that a training logged, by the tokens seen; lines that cannot be read are passed over."""
    found: dict[str, list[tuple[float, float]]] = {"loss": [], "eval_loss": []}
    path = directory / "training_log.jsonl" if directory else None
    if path is None or not path.is_file():
        return found
    for line in path.read_text(errors="replace").splitlines():
        try:
            values = json.loads(line)
            for name, points in found.items():
                if name in values:
                    points.append((float(values["tokens"]), float(values[name])))
        except (ValueError, KeyError, TypeError):
            continue
    return found


def _thinned(points: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    step = max(len(points) // POINTS, 1)
    kept = points[::step] + (points[-1:] if (len(points) - 1) % step else [])
    return [x for x, _ in kept], [y for _, y in kept]


def _accuracies(table: Table) -> Iterator[tuple[str, str, str]]:
    """For each dense model the accuracies of what was made of it, side by side."""
    headings = [heading for heading in table.headings if heading.key.kind == ACCURACY]
    by_base: dict[str, list[tuple[int, Entry]]] = defaultdict(list)
    for number, entry in enumerate(table.entries):
        by_base[entry.line.row.origin.base].append((number, entry))
    for base, entries in by_base.items():
        found = [(number, entry) for number, entry in entries if any(map(_cell(entry), headings))]
        shown = found[:MOST_BARS]
        used = [heading for heading in headings if any(_cell(entry)(heading) for _, entry in shown)]
        if not used:
            continue
        figure, axes = _figure(max(6.0, 0.16 * len(used) * (len(shown) + 2) + 2.5), 4)
        width = 0.85 / len(shown)
        for order, (number, entry) in enumerate(shown):
            values = [_cell(entry)(heading) for heading in used]
            axes.bar(
                [n + (order - (len(shown) - 1) / 2) * width for n, value in enumerate(values) if value],
                [100 * value.value for value in values if value],
                width,
                yerr=[100 * (value.error or 0.0) for value in values if value],
                color=_colour(table, number),
                error_kw={"elinewidth": 0.8},
                label=_short(entry.line.label),
            )
        marked = [f"{_short(heading.name, LONGEST // 2)} {heading.mark}".strip() for heading in used]
        axes.set_xticks(range(len(used)), marked, rotation=20, ha="right")
        axes.set(ylabel="accuracy, %")
        _legend(figure, axes)
        yield f"Accuracy, {clean(base)}", f"With the errors of the table.{_rest(len(found) - MOST_BARS)}", _svg(figure)


def _cell(entry: Entry) -> Callable[[Heading], Value | None]:
    """Gives the number of an entry in a column, None where it has none that can be drawn."""
    drawn = {cell.key: cell.value for cell in entry.cells if cell.value and math.isfinite(cell.value.value)}
    return lambda heading: drawn.get(heading.key)


def _colour(table: Table, number: int) -> str:
    """The colour of a line in all plots."""
    fixed = {DENSE: "#444444", PRUNED: "#aaaaaa"}
    tuned = [n for n, entry in enumerate(table.entries) if entry.line.row.kind not in fixed]
    return fixed.get(table.entries[number].line.row.kind) or f"C{tuned.index(number) % 10}"


def _names(table: Table) -> list[str]:
    """What the lines are called where those of all models stand together."""
    bases = [clean(entry.line.row.origin.base) for entry in table.entries]
    labels = [entry.line.label for entry in table.entries]
    if len(set(bases)) > 1:
        labels = [f"{base}: {label}" for base, label in zip(bases, labels, strict=True)]
    return [_short(label) for label in labels]


def _short(name: str, longest: int = LONGEST) -> str:
    """The name, without its middle if it is long: the settings that tell it from others stand at its end."""
    return name if len(name) <= longest else f"{name[: longest // 3]}…{name[1 - 2 * longest // 3 :]}"


def _rest(number: int) -> str:
    return f" {number} more models are not drawn." if number > 0 else ""


def _sparsities(table: Table) -> Iterator[tuple[str, str, str]]:
    """Sparsity from block to block, for each way in which the models' zeros are spread."""
    profiles: dict[tuple[tuple[str, float], ...], str] = {}
    for name, entry in zip(_names(table), table.entries, strict=True):
        for row in entry.line.rows:
            profiles.setdefault(_profile(row), name)
    profiles.pop((), None)
    if not profiles:
        return
    shown = list(profiles.items())[:MOST_PROFILES]
    figure, axes = _figure(8, 2.4 * len(shown) + 0.4, len(shown))
    for (profile, label), panel in zip(shown, axes if len(shown) > 1 else [axes], strict=True):
        for place, linears in manifest.by_place({name: {"name": name, "s": s} for name, s in profile}).items():
            blocks = [(_block(linear["name"]), linear["s"]) for linear in linears]
            panel.plot([b for b, _ in blocks], [s for _, s in blocks], marker="o", markersize=3, label=place)
        panel.set(title=label, ylabel="sparsity", ylim=(-0.03, 1.03))
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8)  # its own linears
    panel.set_xlabel("block")
    text = f"Models with the same sparsity in every module are drawn once.{_rest(len(profiles) - MOST_PROFILES)}"
    yield "Sparsity per module", text, _svg(figure)


def _profile(row: Row) -> tuple[tuple[str, float], ...]:
    made = row.origin.manifests.get("merge" if row.kind == TUNED else "prune") or {}
    return tuple((name, float(facts["sparsity"])) for name, facts in (made.get("modules") or {}).items())


def _block(module: str) -> int:
    return next((int(part) for part in module.split(".") if part.isdigit()), 0)


def _memory(table: Table) -> Iterator[tuple[str, str, str]]:
    """A picture for each perplexity: what the training needed, and what it gave."""
    memory = Heading(Key("peak_bytes"), "")
    for heading in (heading for heading in table.headings if heading.key.kind == PERPLEXITY):
        points = []
        for entry in (entry for entry in table.entries if entry.line.row.kind == TUNED):
            value, needed = _cell(entry)(heading), _cell(entry)(memory)
            if value and needed:
                points.append((needed.value / 1e9, value.value, entry))
        if not points:
            continue
        figure, axes = _figure(8, 4)
        methods = list(dict.fromkeys(_method(entry) for *_, entry in points))
        for gigabytes, perplexity, entry in points:
            place = methods.index(_method(entry))
            axes.plot(gigabytes, perplexity, "s" if entry.line.row.cost.on_gpu else "o", color=f"C{place % 10}")
        for place, method in enumerate(methods):
            axes.plot([], [], "o", color=f"C{place % 10}", label=method)
        axes.set(xlabel="peak memory in training, GB", ylabel="perplexity")
        _legend(figure, axes)
        title = f"Perplexity against memory {f'[{heading.mark}]' if heading.mark else ''}".strip()
        yield title, "Circles: memory of the process on the host; squares: of the GPU.", _svg(figure)


def _method(entry: Entry) -> str:
    return clean(str((entry.line.row.origin.train or {}).get("method") or "?"))


def _figure(width: float, height: float, panels: int = 1) -> tuple[Any, Any]:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(panels, 1, figsize=(width, height), layout="constrained")
    return figure, axes


def _legend(figure: Any, axes: Any) -> None:
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)


def _svg(figure: Any) -> str:
    """The figure as an element of an HTML page."""
    from matplotlib import pyplot

    stream = io.StringIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # letters that matplotlib's font lacks are the browser's to draw
        figure.savefig(stream, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    text = stream.getvalue()
    text = METADATA.sub("", text[text.index("<svg") :])
    return NAMESPACE.sub("", PART.sub("", text))
