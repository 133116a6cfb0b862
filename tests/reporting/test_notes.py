from pathlib import Path
from typing import Any

from lors_cli.reporting import notes
from lors_cli.tools.report import collect


def test_every_mark_is_explained(runs: Path) -> None:
    table = collect([runs])
    explained: dict[str, Any] = dict(notes.of(table))
    for heading in table.headings:
        assert not heading.mark or heading.mark in explained
    for entry in table.entries:
        assert all(mark in explained for mark in entry.marks)
    assert any(text.startswith("≈") for _, text in notes.of(table))
