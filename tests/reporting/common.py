"""What tests look at in a table."""

from pathlib import Path
from typing import Any

from lors_cli.reporting import notes, text
from lors_cli.reporting.lines import Value
from lors_cli.reporting.table import Entry, Table
from tests.reporting.synthetic import edit_json, resign


def labels(table: Table) -> list[str]:
    return [entry.line.label for entry in table.entries]


def headings(table: Table) -> list[str]:
    return [text.heading(heading) for heading in table.headings]


def line(table: Table, label: str) -> Entry:
    return next(entry for entry in table.entries if entry.line.label == label)


def number(table: Table, label: str, heading: str) -> Value:
    """A number that has to be in the table."""
    there = value(table, label, heading)
    assert there is not None, (label, heading)
    return there


def value(table: Table, label: str, heading: str) -> Value | None:
    return line(table, label).cells[headings(table).index(heading)].value


def said(table: Table) -> str:
    return "\n".join(f"[{mark}] {text}" for mark, text in notes.of(table))


def edit_results(run: Path, **changes: Any) -> None:
    edit_json(run / "eval/results.json", **changes)
    resign(run / "eval")
