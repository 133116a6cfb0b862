"""What all plots share: names, colours, and figures as SVG that is the same for the same runs."""

import io
import math
import re
import warnings
from collections.abc import Callable
from typing import Any

from lors_cli.reporting.labels import clean
from lors_cli.reporting.lines import Value
from lors_cli.reporting.provenance import DENSE, PRUNED
from lors_cli.reporting.table import Entry, Heading, Table

FIXED = {DENSE: "#444444", PRUNED: "#aaaaaa"}  # colours
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


def values(entry: Entry) -> Callable[[Heading], Value | None]:
    """Gives the number of an entry in a column, None where it has none that can be drawn."""
    drawn = {cell.key: cell.value for cell in entry.cells if cell.value and math.isfinite(cell.value.value)}
    return lambda heading: drawn.get(heading.key)


def colours(table: Table) -> list[str]:
    """The colour of each line, in all plots."""
    kinds = [entry.line.row.kind for entry in table.entries]
    tuned = [kind not in FIXED for kind in kinds]
    return [FIXED.get(kind) or f"C{sum(tuned[:number]) % 10}" for number, kind in enumerate(kinds)]


def names(table: Table) -> list[str]:
    """What the lines are called where those of all models stand together."""
    bases = [clean(entry.line.row.origin.base) for entry in table.entries]
    labels = [entry.line.label for entry in table.entries]
    if len(set(bases)) > 1:
        labels = [f"{base}: {label}" for base, label in zip(bases, labels, strict=True)]
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

    found = Figure((width, height), layout="constrained")
    return found, found.subplots(panels, 1)


def finished(drawn: Any, axes: Any) -> str:
    """A figure with a legend of its axes beside it, as SVG."""
    drawn.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)
    return svg(drawn)


def svg(drawn: Any) -> str:
    """A figure as an element of an HTML page."""
    stream = io.StringIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # letters that matplotlib's font lacks are the browser's to draw
        drawn.savefig(stream, format="svg", metadata={"Date": None})
    text = stream.getvalue()
    text = METADATA.sub("", text[text.index("<svg") :])
    return NAMESPACE.sub("", PART.sub("", text))
