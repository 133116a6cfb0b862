"""The table for a paper: booktabs, results above costs so that both fit a page, with the notes below."""

from lors_cli.reporting import formats, notes
from lors_cli.reporting.lines import COSTS
from lors_cli.reporting.table import Cell, Table
from lors_cli.reporting.text import FIRST

# Of every text that comes from elsewhere; the signs are those of our own notes.
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
# A table that is too wide is made smaller, none is made larger.
WIDTH = r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%"


def render(table: Table) -> str:
    """A table* environment, to be taken in with the command input."""
    costs = [place for place, heading in enumerate(table.headings) if heading.key.kind in COSTS]
    measured = [place for place in range(len(table.headings)) if place not in costs]
    lines = [HEAD, *_part(table, measured)]
    if costs:
        lines += [r"\par\medskip", *_part(table, costs)]
    lines.append(r"\par\smallskip\raggedright")
    for mark, text in notes.of(table, "Bold"):
        lines.append(f"{_raised(mark)} {_escaped(text)}".strip() + r"\par")
    lines += [rf"Left out: {_escaped(text)}\par" for text in notes.left_out(table)]
    return "\n".join([*lines, r"\end{table*}"]) + "\n"


def _part(table: Table, places: list[int]) -> list[str]:
    """Some of the columns."""
    shown = [table.headings[place] for place in places]
    head = [*FIRST, *(_escaped(heading.name) + _raised(heading.mark) for heading in shown)]
    lines = [WIDTH, rf"\begin{{tabular}}{{lll{'r' * len(places)}}}", r"\toprule", " & ".join(head) + r" \\"]
    for group, firsts in zip(table.groups, formats.first_cells(table.groups), strict=True):
        lines.append(r"\midrule")
        for entry, (base, _, sparsity) in zip(group.entries, firsts, strict=True):
            name = [_escaped(base), _escaped(entry.line.label) + _raised(",".join(entry.marks)), _escaped(sparsity)]
            lines.append(" & ".join([*name, *(_cell(entry.cells[place]) for place in places)]) + r" \\")
    return [*lines, r"\bottomrule", r"\end{tabular}}"]


def _cell(cell: Cell) -> str:
    text = _escaped(formats.cell(cell))
    if cell.best:
        text = rf"\textbf{{{text}}}"
    return rf"{text}$^{{\approx}}$" if cell.tied else text


def _raised(mark: str) -> str:
    return rf"$^{{\mathrm{{{mark}}}}}$" if mark else ""


def _escaped(text: str) -> str:
    """The text with what TeX would act upon written out; letters that pdfTeX has no glyph for become question marks."""
    return "".join(SPECIAL.get(letter, letter if ord(letter) < 256 else "?") for letter in text)
