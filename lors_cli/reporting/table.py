"""The table: lines in groups as the papers have them, the best of each group marked, and notes that say the rest."""

import re
from collections import defaultdict
from dataclasses import dataclass, field
from string import ascii_lowercase

from lors_cli.reporting import columns, compare, lines
from lors_cli.reporting.columns import ACCURACY, AVERAGE, OTHER, PERPLEXITY, Column
from lors_cli.reporting.compare import Comparison
from lors_cli.reporting.lines import RECOVERY, Key, Line, Value
from lors_cli.reporting.origin import TUNED
from lors_cli.reporting.rows import ORDER, Row, clean, goal, names, pruning
from lors_cli.reporting.runs import LeftOut

TESTED = (ACCURACY, AVERAGE, PERPLEXITY, OTHER)
NUMBER = re.compile(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)")


@dataclass
class Cell:
    """A number of the table, None where there is none; whether it is its group's best, or not told from that."""

    key: Key
    value: Value | None
    best: bool = False
    tied: bool = False


@dataclass
class Heading:
    """What a column is called, and the letter of the note that says how it differs from another of that name."""

    key: Key
    name: str
    mark: str = ""


@dataclass
class Entry:
    """A line with its cells, and the numbers of the notes about it."""

    line: Line
    cells: list[Cell]
    marks: list[str] = field(default_factory=list)


@dataclass
class Group:
    """The dense model, or what one way of pruning made of it: the pruned model first, then those tuned from it."""

    model: str
    pruning: str
    goal: str
    entries: list[Entry]


@dataclass
class Tested:
    """A comparison of a line with the best one of its group in one column."""

    group: Group
    column: Column
    this: str
    best: str
    comparison: Comparison


@dataclass
class Table:
    """Everything that a report shows, in order; `left_out` is what it does not."""

    headings: list[Heading]
    groups: list[Group]
    tests: list[Tested]
    left_out: list[LeftOut]
    seed_notes: list[str]
    over_seeds: bool

    @property
    def entries(self) -> list[Entry]:
        """The lines of all groups."""
        return [entry for group in self.groups for entry in group.entries]


def build(rows: list[Row], left_out: list[LeftOut], *, over_seeds: bool = False) -> Table:
    """The table of some rows.

    Args:
        rows: all of them, in any order.
        left_out: what is not among them, to be said.
        over_seeds: whether rows that differ by the seed alone become one line.

    """
    order = list(dict.fromkeys(column for row in rows for column in row.measures))
    averages = columns.averages(
        [frozenset(column for column in row.measures if column.kind == ACCURACY) for row in rows], order
    )
    every, seed_notes = lines.of(rows, order, averages, over_seeds=over_seeds)
    keys = lines.keys(every, order, averages)
    groups = _groups(every, keys, ignoring=("seed",) if over_seeds else ())
    tests = [test for group in groups for key in keys if key.kind in TESTED for test in _mark(group, key)]
    _number(groups)
    return Table(_headings(keys), groups, tests, left_out, seed_notes, over_seeds)


def _groups(lines: list[Line], keys: list[Key], ignoring: tuple[str, ...]) -> list[Group]:
    """The lines in groups, dense models before what was made of them."""
    members: dict[tuple[str, str, str], list[Line]] = defaultdict(list)
    for line in lines:
        row = line.row
        members[row.dense[0], pruning(row), goal(row)].append(line)
    groups = []
    for way in sorted(members, key=lambda way: [_natural(part) for part in way]):
        (model, pruned_by, goal_of), group = way, members[way]
        for line, name in zip(group, names([line.row for line in group], ignoring), strict=True):
            line.label = f"{name}, {len(line.rows)} seeds" if len(line.rows) > 1 else name
        ordered = sorted(group, key=lambda line: (ORDER.index(line.row.kind), _natural(line.label)))
        entries = [Entry(line, [Cell(key, line.values.get(key)) for key in keys]) for line in ordered]
        groups.append(Group(clean(model), pruned_by, goal_of, entries))
    return groups


def _natural(text: str) -> list[tuple[int, float, str]]:
    """For sorting: numbers within a text by their size."""
    parts = NUMBER.split(text.lower())
    return [(0, float(part), "") if NUMBER.fullmatch(part) else (1, 0.0, part) for part in parts if part]


def _mark(group: Group, key: Key) -> list[Tested]:
    """Mark the best of a group's tuned lines in a column and those that a test does not tell from it."""
    place = next(number for number, cell in enumerate(group.entries[0].cells) if cell.key == key)
    entries = [entry for entry in group.entries if entry.line.row.kind == TUNED]
    tuned = [(entry, value) for entry in entries if (value := entry.cells[place].value)]
    column = key.column
    if len(tuned) < 2 or column is None:
        return []
    best, best_value = (min if column.falls else max)(tuned, key=lambda pair: pair[1].value)
    others = [(entry, value) for entry, value in tuned if entry is not best]
    for entry, value in tuned:
        entry.cells[place].best = value.value == best_value.value
    if best.line.values[key].parts or any(value.parts for _, value in others):
        comparisons = [compare.over_seeds(value.parts, best_value.parts) for _, value in others]
    else:
        comparisons = compare.with_best(
            best.line.row.measures, [entry.line.row.measures for entry, _ in others], column
        )
    tests = []
    for (entry, _), comparison in zip(others, comparisons, strict=True):
        cell = entry.cells[place]
        cell.tied = comparison.different is False and not cell.best
        tests.append(Tested(group, column, entry.line.label, best.line.label, comparison))
    return tests


def _number(groups: list[Group]) -> None:
    """Number the notes about lines, equal ones alike."""
    known: dict[str, str] = {}
    for group in groups:
        for entry in group.entries:
            for note in dict.fromkeys(note for row in entry.line.rows for note in row.notes):
                entry.marks.append(known.setdefault(note, str(len(known) + 1)))


def line_notes(table: Table) -> dict[str, str]:
    """The notes about lines by their numbers."""
    noted: dict[str, str] = {}
    for entry in table.entries:
        texts = dict.fromkeys(note for row in entry.line.rows for note in row.notes)
        noted.update(zip(entry.marks, texts, strict=True))
    return noted


def _headings(keys: list[Key]) -> list[Heading]:
    """Names for the columns; those that share one get letters, and so do averages."""
    headed = [_name(key) for key in keys]
    letters: dict[Column, str] = {}
    for key, name in zip(keys, headed, strict=True):
        if key.column and key.kind != RECOVERY and (headed.count(name) > 1 or key.kind == AVERAGE):
            number = len(letters)
            letters[key.column] = ascii_lowercase[number % 26] * (number // 26 + 1)
    return [
        Heading(key, name, letters.get(key.column, "") if key.column else "")
        for key, name in zip(keys, headed, strict=True)
    ]


def _name(key: Key) -> str:
    if key.column is None:
        return {
            "reduction": "reduction",
            "model_parameters": "parameters",
            "tokens": "tokens",
            "trainable": "trainable",
            "permille": "‰",
            "seconds": "training",
            "peak_bytes": "peak memory",
            "size_bytes": "size",
        }[key.kind]
    name = clean(key.column.name)
    return f"recovery, {name}" if key.kind == RECOVERY else name
