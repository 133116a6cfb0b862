"""The plots of the HTML page, as SVG that is the same for the same runs and asks nothing of a network."""

from collections import defaultdict
from collections.abc import Iterator

from lors_cli.reporting import curves, drawing
from lors_cli.reporting.columns import ACCURACY, PERPLEXITY
from lors_cli.reporting.drawing import LONGEST, short
from lors_cli.reporting.labels import clean
from lors_cli.reporting.lines import Key
from lors_cli.reporting.provenance import TUNED
from lors_cli.reporting.rows import Row
from lors_cli.reporting.table import Entry, Heading, Table
from lors_cli.run import manifest
from lors_cli.run.manifest import Merged, Pruned

MOST_BARS, MOST_PROFILES = 16, 6


def all_of(table: Table) -> Iterator[tuple[str, str, str]]:
    """A title, an explanation and an SVG for each plot for which there are data."""
    import matplotlib

    with matplotlib.rc_context(drawing.STYLE):
        yield from curves.of(table)
        yield from _accuracies(table)
        yield from _sparsities(table)
        yield from _memory(table)


def _accuracies(table: Table) -> Iterator[tuple[str, str, str]]:
    """For each dense model the accuracies of what was made of it, side by side."""
    headings = [heading for heading in table.headings if heading.key.kind == ACCURACY]
    colours = drawing.colours(table)
    by_base: dict[str, list[tuple[int, Entry]]] = defaultdict(list)
    for number, entry in enumerate(table.entries):
        by_base[entry.line.row.origin.base].append((number, entry))
    for base, entries in by_base.items():
        found = [(number, entry) for number, entry in entries if any(map(drawing.values(entry), headings))]
        shown = found[:MOST_BARS]
        used = [heading for heading in headings if any(drawing.values(entry)(heading) for _, entry in shown)]
        if not used:
            continue
        figure, axes = drawing.figure(max(6.0, 0.16 * len(used) * (len(shown) + 2) + 2.5), 4)
        width = 0.85 / len(shown)
        for order, (number, entry) in enumerate(shown):
            values = list(map(drawing.values(entry), used))
            axes.bar(
                [n + (order - (len(shown) - 1) / 2) * width for n, value in enumerate(values) if value],
                [100 * value.value for value in values if value],
                width,
                yerr=[100 * (value.error or 0.0) for value in values if value],
                color=colours[number],
                error_kw={"elinewidth": 0.8},
                label=short(entry.line.label),
            )
        marked = [f"{short(heading.name, LONGEST // 2)} {heading.mark}".strip() for heading in used]
        axes.set_xticks(range(len(used)), marked, rotation=20, ha="right")
        axes.set(ylabel="accuracy, %")
        text = f"With the errors of the table.{drawing.rest(len(found) - MOST_BARS)}"
        yield f"Accuracy, {clean(base)}", text, drawing.finished(figure, axes)


def _sparsities(table: Table) -> Iterator[tuple[str, str, str]]:
    """Sparsity from block to block, for each way in which the models' zeros are spread."""
    profiles: dict[tuple[tuple[str, float], ...], str] = {}
    for name, entry in zip(drawing.names(table), table.entries, strict=True):
        for row in entry.line.rows:
            profiles.setdefault(_profile(row), name)
    profiles.pop((), None)
    if not profiles:
        return
    shown = list(profiles.items())[:MOST_PROFILES]
    figure, axes = drawing.figure(8, 2.4 * len(shown) + 0.4, len(shown))
    for (profile, label), panel in zip(shown, axes if len(shown) > 1 else [axes], strict=True):
        for place, linears in manifest.by_place({name: {"name": name, "s": s} for name, s in profile}).items():
            blocks = [(_block(linear["name"]), linear["s"]) for linear in linears]
            panel.plot([b for b, _ in blocks], [s for _, s in blocks], marker="o", markersize=3, label=place)
        panel.set(title=short(label), ylabel="sparsity", ylim=(-0.03, 1.03))
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8)  # its own linears
    panel.set_xlabel("block")
    text = f"Models with the same sparsity in every module are drawn once.{drawing.rest(len(profiles) - MOST_PROFILES)}"
    yield "Sparsity per module", text, drawing.svg(figure)


def _profile(row: Row) -> tuple[tuple[str, float], ...]:
    facts = row.origin.made and row.origin.made.facts
    modules = (facts.modules if isinstance(facts, Pruned | Merged) else None) or {}
    return tuple((name, float(facts["sparsity"])) for name, facts in modules.items())


def _block(module: str) -> int:
    return next((int(part) for part in module.split(".") if part.isdigit()), 0)


def _memory(table: Table) -> Iterator[tuple[str, str, str]]:
    """A picture for each perplexity: what the training needed, and what it gave."""
    memory = Heading(Key("peak_bytes"), "")
    for heading in (heading for heading in table.headings if heading.key.kind == PERPLEXITY):
        points: dict[str, list[tuple[float, float, bool]]] = defaultdict(list)
        for entry in (entry for entry in table.entries if entry.line.row.kind == TUNED):
            value, needed = map(drawing.values(entry), (heading, memory))
            if value and needed:
                points[_method(entry)].append((needed.value / 1e9, value.value, entry.line.row.cost.on_gpu))
        if not points:
            continue
        figure, axes = drawing.figure(8, 4)
        for place, (method, found) in enumerate(points.items()):
            for sign, on_gpu in (("o", False), ("s", True)):
                shown = [(gigabytes, perplexity) for gigabytes, perplexity, where in found if where == on_gpu]
                axes.plot([x for x, _ in shown], [y for _, y in shown], sign, color=f"C{place % 10}")
            axes.plot([], [], "o", color=f"C{place % 10}", label=method)
        axes.set(xlabel="peak memory in training, GB", ylabel="perplexity")
        title = f"Perplexity against memory {f'[{heading.mark}]' if heading.mark else ''}".strip()
        yield title, "Circles: memory of the process on the host; squares: of the GPU.", drawing.finished(figure, axes)


def _method(entry: Entry) -> str:
    return clean(str((entry.line.row.origin.train or {}).get("method") or "?"))
