"""The report for a terminal and as Markdown."""

import io
import re
from html import escape

from lors_cli.console import markdown_table
from lors_cli.reporting import formats, notes
from lors_cli.reporting.table import Cell, Table

# What Markdown would take for markup, in names and paths; an underscore inside a word is none.
MARKUP = re.compile(r"[\\`*|\[\]]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
FIRST = ("model", "method", "sparsity")


def markdown(table: Table) -> str:
    """A table with the best in bold, and its notes as a list."""

    def shown(cell: Cell) -> str:
        text = f"**{formats.cell(cell)}**" if cell.best else formats.cell(cell)
        return f"{text} {notes.TIED}" if cell.tied else text

    header = [*FIRST, *(_escaped(formats.heading(heading)) for heading in table.headings)]
    rows = [
        [*map(_escaped, first), *map(shown, entry.cells)]
        for group, firsts in zip(table.groups, formats.first_cells(table.groups), strict=True)
        for entry, first in zip(group.entries, firsts, strict=True)
    ]
    lines = [f"- {_escaped(f'[{mark}] {text}' if mark else text)}" for mark, text in notes.of(table, "bold")]
    parts = [markdown_table(header, rows), "\n".join(lines)]
    if left := notes.left_out(table):
        parts.append("\n".join(["Left out:", "", *(f"- {_escaped(text)}" for text in left)]))
    return "\n\n".join(parts) + "\n"


def _escaped(text: str) -> str:
    return MARKUP.sub(r"\\\g<0>", escape(text, quote=False))


def plain(table: Table) -> str:
    """For a file or a pipe: one table, however wide."""
    header = [*FIRST, *(formats.heading(heading) for heading in table.headings)]
    rows = [cells for group in _lines(table) for cells in group]
    return f"{markdown_table(header, rows)}\n\n{_below(table)}"


def terminal(table: Table, width: int) -> str:
    """For people: as many tables of `width` characters as the columns need, each with the names of the lines."""
    from rich.cells import cell_len

    header = [*FIRST, *(formats.heading(heading) for heading in table.headings)]
    groups = _lines(table)
    every = [header, *(cells for group in groups for cells in group)]
    widths = [max(cell_len(cells[place]) for cells in every) + 3 for place in range(len(header))]
    named = sum(widths[: len(FIRST)])
    parts: list[list[int]] = [[]]
    for place in range(len(FIRST), len(header)):
        if parts[-1] and named + sum(widths[column] for column in parts[-1]) + widths[place] > width:
            parts.append([])
        parts[-1].append(place)
    drawn = [_drawn([*range(len(FIRST)), *part], header, groups, width) for part in parts]
    return "\n\n".join([*drawn, _below(table)])


def _drawn(places: list[int], header: list[str], groups: list[list[list[str]]], width: int) -> str:
    """Some of the columns as a rich table."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    found = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
    for place in places:
        found.add_column(Text(header[place]), justify="left" if place < len(FIRST) else "right", overflow="fold")
    for group in groups:
        for cells in group:
            # text, not markup: a name may hold brackets
            found.add_row(*(Text(cells[p], "bold" if cells[p].endswith(notes.BEST) else "") for p in places))
        found.add_section()
    shown = io.StringIO()
    Console(file=shown, force_terminal=True, width=width).print(found)
    return shown.getvalue().rstrip()


def _lines(table: Table) -> list[list[list[str]]]:
    def shown(cell: Cell) -> str:
        text = formats.cell(cell)
        return f"{text} {notes.BEST}" if cell.best else f"{text} {notes.TIED}" if cell.tied else text

    return [
        [[*first, *map(shown, entry.cells)] for entry, first in zip(group.entries, firsts, strict=True)]
        for group, firsts in zip(table.groups, formats.first_cells(table.groups), strict=True)
    ]


def _below(table: Table) -> str:
    lines = [f"[{mark}] {text}" if mark else text for mark, text in notes.of(table)]
    if left := notes.left_out(table):
        lines += ["", "Left out:", *(f"- {text}" for text in left)]
    return "\n".join(lines) + "\n"
