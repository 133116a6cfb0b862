"""The report in a terminal: one table of everything where that fits, else what matters most, on one screen."""

import io
import textwrap

from lors_cli.reporting import notes, text
from lors_cli.reporting.columns import ACCURACY, AVERAGE, OTHER, PERPLEXITY
from lors_cli.reporting.lines import COSTS, RECOVERY
from lors_cli.reporting.table import Cell, Heading, Table

# What is shown first where there is not room for everything.
FIRST = (PERPLEXITY, AVERAGE, ACCURACY, OTHER, RECOVERY, "size_bytes", "reduction", "model_parameters", "trainable")
SCREEN = 40  # lines, which notes fill up
LEAST_NOTES = 8  # lines, below however long a table
GAP = 2  # columns between those of the table: a space of rich's box, and one of padding
LABEL_SHARE = 0.45  # of the width, at most, for the names of lines


def render(table: Table, width: int) -> str:
    """The report in `width` columns."""
    whole = _whole(table, width)
    return whole if whole is not None else _compact(table, width)


def _whole(table: Table, width: int) -> str | None:
    """All columns in one table with all notes; None if they do not fit."""
    header, groups = text.cells(table)
    drawn = _drawn(header, groups, len(text.FIRST), None)
    if any(len(line) > width for line in _plain(drawn)):
        return None
    return f"{drawn}\n\n{text.below(table)}"


def _compact(table: Table, width: int) -> str:
    """The columns that there is room for, without errors of measurement, and the notes that fit on the screen."""
    labels = [first[1] for firsts in text.first_cells(table.groups) for first in firsts]
    patterns = [text.sparsity(entry) for entry in table.entries]
    label = min(max(map(len, [*labels, *(group.model for group in table.groups)])), int(width * LABEL_SHARE))
    room = width - label - GAP - max(map(len, [*patterns, "sparsity"]))
    chosen: list[int] = []
    hidden: list[int] = []
    for place in sorted(range(len(table.headings)), key=lambda place: _rank(table.headings[place])):
        shown = [_short(entry.cells[place]) for entry in table.entries]
        needed = GAP + max(map(len, [*shown, *_folded(table.headings[place]).split("\n")]))
        if needed <= room and (_rank(table.headings[place]) < len(FIRST) or not hidden):
            chosen.append(place)
            room -= needed
        else:
            hidden.append(place)
    chosen.sort()
    header = ["model", "sparsity", *(_folded(table.headings[place]) for place in chosen)]
    groups, last = [], None
    for group, firsts in zip(table.groups, text.first_cells(table.groups), strict=True):
        rows = [[group.model, *([""] * (len(chosen) + 1))]] if group.model != last else []
        for entry, first in zip(group.entries, firsts, strict=True):
            rows.append([first[1], text.sparsity(entry), *(_short(entry.cells[place]) for place in chosen)])
        groups.append(rows)
        last = group.model
    drawn = _drawn(header, groups, 1, width)
    missing = [table.headings[place].name for place in sorted(hidden)]
    return f"{drawn}\n\n{_notes(table, missing, width, max(SCREEN - len(drawn.splitlines()) - 1, LEAST_NOTES))}"


def _rank(heading: Heading) -> int:
    return FIRST.index(heading.key.kind) if heading.key.kind in FIRST else len(FIRST) + COSTS.index(heading.key.kind)


def _short(cell: Cell) -> str:
    """A number without its error, with its marks."""
    if cell.value is None:
        return text.NOTHING
    mark = notes.BEST if cell.best else notes.TIED if cell.tied else ""
    return f"{text.number(cell.key.kind, cell.value.value)}{mark and ' '}{mark}"


def _folded(heading: Heading) -> str:
    """A heading with each word on its own line."""
    return text.heading(heading).replace("_", "_\n").replace(" ", "\n")


def _notes(table: Table, hidden: list[str], width: int, room: int) -> str:
    """The notes that fit into so many lines: first those about lines and columns, and what was left out."""
    of_lines = [f"[{mark}] {said}" for mark, said in notes.of(table) if mark]
    others = [said for mark, said in notes.of(table) if not mark]
    left = [f"Left out: {said}" for said in notes.left_out(table)]
    shown: list[str] = []
    missing = f"Not shown in {width} columns: {'; '.join(hidden)}; errors of measurement." if hidden else ""
    last = f"{missing} --format markdown has {'all, and all notes' if hidden else 'errors and all notes'}.".strip()
    end = textwrap.wrap(last, width, break_long_words=False)
    for said in (*of_lines, *left, *others):
        lines = textwrap.wrap(said, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
        if len(shown) + len(lines) + len(end) > room:
            break
        shown += lines
    return "\n".join([*shown, *end]) + "\n"


def _drawn(header: list[str], groups: list[list[list[str]]], left: int, width: int | None) -> str:
    """A rich table, whose first `left` columns are aligned to the left."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1) if width is None else (0, 0, 0, 1))
    for place, name in enumerate(header):
        drawn.add_column(Text(name), justify="left" if place < left else "right", overflow="fold")
    for cells_of_group in groups:
        for cells in cells_of_group:
            # text, not markup: a name may hold brackets
            drawn.add_row(*(Text(cell, "bold" if cell.endswith(notes.BEST) else "") for cell in cells))
        drawn.add_section()
    stream = io.StringIO()
    Console(file=stream, force_terminal=True, width=width or 10_000).print(drawn)
    return stream.getvalue().rstrip()


def _plain(drawn: str) -> list[str]:
    """Its lines without colours."""
    from rich.text import Text

    return [Text.from_ansi(line).plain.rstrip() for line in drawn.splitlines()]
