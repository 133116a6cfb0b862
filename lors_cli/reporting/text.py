"""The report for people: as Markdown, for a file, and as a table for a paper; and numbers as people read them."""

import math
import re
from html import escape

from lors_cli.console import markdown_table
from lors_cli.reporting import notes, samples
from lors_cli.reporting.columns import ACCURACY, AVERAGE, OTHER, PERPLEXITY
from lors_cli.reporting.lines import COSTS, RECOVERY
from lors_cli.reporting.table import Cell, Entry, Group, Heading, Table

FIRST = ("model", "method", "sparsity")
NOTHING = "-"
PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
# What Markdown would take for markup, in names and paths; an underscore inside a word is not.
MARKUP = re.compile(r"[\\`*|\[\]]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
# What TeX would act upon in texts from elsewhere; the signs are those of our own notes.
SPECIAL = {
    "\\": r"\textbackslash{}",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "[": "{[}",  # after the end of a line of a table it would begin an option, as would a star
    "*": "{*}",
    "±": r"{\scriptsize$\pm$}",
    "≈": r"$\approx$",
    "‰": r"\textperthousand{}",
}
HEAD = r"""% made by lors report; needs \usepackage[T1]{fontenc} and \usepackage{booktabs,graphicx}
\begin{table*}
\centering\footnotesize\setlength{\tabcolsep}{4pt}"""
# A table that is too wide is made smaller; no table is made larger.
WIDTH = r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%"


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


def measured(cell: Cell) -> str:
    """The number in a cell with its error, without marks."""
    if cell.value is None:
        return NOTHING
    error = cell.value.error
    shown = number(cell.key.kind, cell.value.value)
    if error is None or cell.key.column is None:  # costs over seeds are means
        return shown
    return f"{shown} ± {number(cell.key.kind, error)}"


def marked(cell: Cell) -> str:
    """The number in a cell with its marks."""
    mark = f" {notes.BEST}" if cell.best else f" {notes.TIED}" if cell.tied else ""
    return measured(cell) + mark


def amount(value: float, unit: str = "") -> str:
    """A number with a decimal prefix, such as 1.31 M or 512 kB."""
    for size, prefix in PREFIXES:
        if abs(value) >= size:
            return f"{value / size:.3g} {prefix}{unit}"
    return f"{value:.0f} {unit}".strip()


def duration(seconds: float) -> str:
    """A time such as 45 s, 12.3 min or 3.9 h."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def plural(number: int, noun: str) -> str:
    """So many of them: 1 prompt, 1,200 prompts."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def sparsity(entry: Entry) -> str:
    """The sparsity of a line's models."""
    return "/".join(dict.fromkeys(row.pattern for row in entry.line.rows))


def heading(heading: Heading) -> str:
    """A heading with its mark."""
    return f"{heading.name} [{heading.mark}]" if heading.mark else heading.name


def first_cells(groups: list[Group]) -> list[list[tuple[str, str, str]]]:
    """For each line of each group its model, only where that changes, its method with the marks, its sparsity."""
    cells: list[list[tuple[str, str, str]]] = []
    last = None
    for group in groups:
        cells.append([])
        for entry in group.entries:
            marks = f" [{', '.join(entry.marks)}]" if entry.marks else ""
            cells[-1].append((group.model if group.model != last else "", entry.line.label + marks, sparsity(entry)))
            last = group.model
    return cells


def markdown(table: Table) -> str:
    """A table with the best in bold, and its notes as a list."""

    def shown(cell: Cell) -> str:
        text = f"**{measured(cell)}**" if cell.best else measured(cell)
        return f"{text} {notes.TIED}" if cell.tied else text

    header = [*FIRST, *(_for_markdown(heading(column)) for column in table.headings)]
    rows = [
        [*map(_for_markdown, first), *map(shown, entry.cells)]
        for group, firsts in zip(table.groups, first_cells(table.groups), strict=True)
        for entry, first in zip(group.entries, firsts, strict=True)
    ]
    lines = [f"- {_for_markdown(f'[{mark}] {text}' if mark else text)}" for mark, text in notes.of(table, "bold")]
    parts = [markdown_table(header, rows), "\n".join(lines)]
    if left := notes.left_out(table):
        parts.append("\n".join(["Left out:", "", *(f"- {_for_markdown(text)}" for text in left)]))
    for asked in samples.of(table):
        answers = [f"- {_for_markdown(name)}: {_for_markdown(said)}" for name, said in asked.answers]
        head = f"{_for_markdown(asked.model)}, {_for_markdown(asked.how)}: {_for_markdown(asked.prompt)}"
        parts += [head, "\n".join(answers)]
    return "\n\n".join(parts) + "\n"


def _for_markdown(text: str) -> str:
    return MARKUP.sub(r"\\\g<0>", escape(text, quote=False))


def plain(table: Table) -> str:
    """For a file or a pipe: one table, however wide."""
    header, groups = cells(table)
    return f"{markdown_table(header, [cells for group in groups for cells in group])}\n\n{below(table)}"


def cells(table: Table) -> tuple[list[str], list[list[list[str]]]]:
    """The header of all columns, and the cells of each line of each group."""
    groups = [
        [[*first, *map(marked, entry.cells)] for entry, first in zip(group.entries, firsts, strict=True)]
        for group, firsts in zip(table.groups, first_cells(table.groups), strict=True)
    ]
    return [*FIRST, *map(heading, table.headings)], groups


def below(table: Table) -> str:
    """The notes, and what is left out."""
    lines = [f"[{mark}] {text}" if mark else text for mark, text in notes.of(table)]
    if left := notes.left_out(table):
        lines += ["", "Left out:", *(f"- {text}" for text in left)]
    return "\n".join(lines) + "\n"


def latex(table: Table) -> str:
    """A table* environment for the command input: results above costs so that both fit a page, notes below."""
    costs = [place for place, column in enumerate(table.headings) if column.key.kind in COSTS]
    results = [place for place in range(len(table.headings)) if place not in costs]
    lines = [HEAD, *_tabular(table, results)]
    if costs:
        lines += [r"\par\medskip", *_tabular(table, costs)]
    lines.append(r"\par\smallskip\raggedright")
    for mark, text in notes.of(table, "Bold"):
        lines.append(f"{_raised(mark)} {_for_tex(text)}".strip() + r"\par")
    lines += [rf"Left out: {_for_tex(text)}\par" for text in notes.left_out(table)]
    return "\n".join([*lines, r"\end{table*}"]) + "\n"


def _tabular(table: Table, places: list[int]) -> list[str]:
    """Some of the columns."""
    shown = [table.headings[place] for place in places]
    head = [*FIRST, *(_for_tex(column.name) + _raised(column.mark) for column in shown)]
    lines = [WIDTH, rf"\begin{{tabular}}{{lll{'r' * len(places)}}}", r"\toprule", " & ".join(head) + r" \\"]
    for group, firsts in zip(table.groups, first_cells(table.groups), strict=True):
        lines.append(r"\midrule")
        for entry, (model, _, zeros) in zip(group.entries, firsts, strict=True):
            name = [_for_tex(model), _for_tex(entry.line.label) + _raised(",".join(entry.marks)), _for_tex(zeros)]
            lines.append(" & ".join([*name, *(_tex_cell(entry.cells[place]) for place in places)]) + r" \\")
    return [*lines, r"\bottomrule", r"\end{tabular}}"]


def _tex_cell(cell: Cell) -> str:
    text = _for_tex(measured(cell))
    if cell.best:
        text = rf"\textbf{{{text}}}"
    return rf"{text}$^{{\approx}}$" if cell.tied else text


def _raised(mark: str) -> str:
    return rf"$^{{\mathrm{{{mark}}}}}$" if mark else ""


def _for_tex(text: str) -> str:
    """The text with TeX's special characters escaped; letters without a glyph in pdfTeX become question marks."""
    return "".join(SPECIAL.get(letter, letter if ord(letter) < 256 else "?") for letter in text)
