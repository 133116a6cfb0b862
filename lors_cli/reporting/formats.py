"""Numbers as people read them."""

import math

from lors_cli.reporting.columns import ACCURACY, AVERAGE, OTHER, PERPLEXITY
from lors_cli.reporting.lines import RECOVERY
from lors_cli.reporting.table import Cell, Entry, Group, Heading

NOTHING = "-"
PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def number(kind: str, value: float) -> str:
    """A number of a column of that kind."""
    if not math.isfinite(value):
        return str(value)
    if kind in (ACCURACY, AVERAGE):
        return f"{100 * value:.2f}"
    if kind in (PERPLEXITY, OTHER):
        return f"{value:.2f}" if abs(value) < 1e5 else f"{value:.3g}"
    if kind == RECOVERY:
        return f"{100 * value:.1f}%"
    if kind == "reduction":
        return f"{value:.2f}x"
    if kind == "seconds":
        return duration(value)
    if kind == "permille":
        return f"{value:.3g}" if value < 100 else f"{value:.0f}"
    return amount(value, "B" if kind.endswith("bytes") else "")


def cell(found: Cell) -> str:
    """The number in a cell with its error, without marks."""
    if found.value is None:
        return NOTHING
    error = found.value.error
    shown = number(found.key.kind, found.value.value)
    if error is None or found.key.column is None:  # costs over seeds are means
        return shown
    return f"{shown} ± {number(found.key.kind, error)}"


def amount(value: float, unit: str = "") -> str:
    """With a decimal prefix, such as 1.31 M or 512 kB."""
    for size, prefix in PREFIXES:
        if abs(value) >= size:
            return f"{value / size:.3g} {prefix}{unit}"
    return f"{value:.0f} {unit}".strip()


def duration(seconds: float) -> str:
    """Such as 45 s, 12.3 min or 3.9 h."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def sparsity(entry: Entry) -> str:
    """The sparsity of a line's models."""
    return "/".join(dict.fromkeys(row.pattern for row in entry.line.rows))


def heading(found: Heading) -> str:
    """A heading with its mark."""
    return f"{found.name} [{found.mark}]" if found.mark else found.name


def first_cells(groups: list[Group]) -> list[list[tuple[str, str, str]]]:
    """For each line of each group its model, only where that changes, its method with the marks, its sparsity."""
    found, last = [], None
    for group in groups:
        cells = []
        for entry in group.entries:
            marks = f" [{', '.join(entry.marks)}]" if entry.marks else ""
            cells.append((group.base if group.base != last else "", entry.line.label + marks, sparsity(entry)))
            last = group.base
        found.append(cells)
    return found
