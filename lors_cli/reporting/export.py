"""The report for programs: as CSV and as JSON, unrounded, each line with where it comes from."""

import csv
import io
import json
import math
from typing import Any

from lors_cli.reporting import lines, notes, samples
from lors_cli.reporting.compare import Comparison
from lors_cli.reporting.lines import COSTS, RECOVERY
from lors_cli.reporting.rows import Row, clean
from lors_cli.reporting.rows import settings as settings_of
from lors_cli.reporting.runs import EVAL
from lors_cli.reporting.table import Entry, Group, Heading, Table, line_notes
from lors_cli.reporting.text import sparsity
from lors_cli.run import environment
from lors_cli.run.layout import STAGES
from lors_cli.run.manifest import Manifest

UNITS = {"permille": "trainable_permille", "seconds": "training_seconds", "peak_bytes": "peak_memory_bytes"}


def as_csv(table: Table) -> str:
    """One line for each of the table's; the name of a column says how it differs from another of that name."""
    names = [_column(heading, table) for heading in table.headings]
    measured = [heading.key.kind not in COSTS for heading in table.headings]
    header = ["model", "method", "kind", "pruning", "pruning_goal", "sparsity", "seeds"]
    for name, has_error in zip(names, measured, strict=True):
        header += [name, f"{name} error"] if has_error else [name]
    header += ["run", "evaluated", "digest", "base_digest", "eval_digest", "lors_cli", "hardware", "notes"]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    explained = line_notes(table)
    for group in table.groups:
        for entry in group.entries:
            writer.writerow(_csv_line(group, entry, measured, explained))
    return stream.getvalue()


def _csv_line(group: Group, entry: Entry, measured: list[bool], explained: dict[str, str]) -> list[Any]:
    rows = entry.line.rows
    sparsity = sum(row.sparsity for row in rows) / len(rows)
    values = [group.model, entry.line.label, rows[0].kind, group.pruning, group.goal, sparsity, len(rows)]
    for cell, has_error in zip(entry.cells, measured, strict=True):
        error = cell.value.error if cell.value else None
        values += [cell.value.value if cell.value else ""]
        values += ["" if error is None else error] if has_error else []
    runs = [run for row in rows for run in row.runs]
    return [
        *values,
        _joined(str(run.directory) for run in runs),
        _joined(row.name for row in rows),
        _joined(row.digest or "" for row in rows),
        rows[0].dense[1],
        _joined(run.manifest.digest for run in runs),
        _joined(dict.fromkeys(run.manifest.versions.get("lors_cli", "?") for run in runs)),
        _joined(dict.fromkeys(hardware(run.manifest) for run in runs)),
        _joined(explained[mark] for mark in entry.marks),
    ]


def _joined(texts: Any) -> str:
    return clean("; ".join(texts))


def hardware(made: Manifest) -> str:
    """What a manifest says of the machine, in a line."""
    return ", ".join(f"{key} {value}" for key, value in made.hardware.items())


def _column(heading: Heading, table: Table) -> str:
    key = heading.key
    if key.column is None:
        return UNITS.get(key.kind, key.kind)
    differs = notes.distinction(key.column, table)
    if key.column.over:
        differs = clean(", ".join(part.name for part in key.column.over))
    return f"{heading.name} ({differs})" if differs else heading.name


def as_json(table: Table) -> str:
    """Everything: numbers, tests, settings, provenance, notes and what was left out."""
    names = {key.column: _column(head, table) for head in table.headings if (key := head.key).kind != RECOVERY}
    content = {
        "columns": [_json_heading(heading, table) for heading in table.headings],
        "groups": [
            {**_json_group(group), "rows": [_json_entry(entry, table) for entry in group.entries]}
            for group in table.groups
        ],
        "tests": [
            {**_json_group(test.group), "column": names[test.column], "this": test.this, "best": test.best}
            | _json_comparison(test.comparison)
            for test in table.tests
        ],
        "notes": [{"mark": mark, "text": text} for mark, text in notes.of(table, "best")],
        "left_out": [{"path": str(one.path), "reason": one.reason, "remedy": one.remedy} for one in table.left_out],
        "versions": environment.versions(),
    }
    return json.dumps(_finite(content), indent=2, allow_nan=False) + "\n"


def _json_heading(heading: Heading, table: Table) -> dict[str, Any]:
    column = heading.key.column
    settings = dict(column.settings) | ({"text": column.text} if column.text else {}) if column else {}
    over = [part.name for part in column.over] if column and column.over else None
    facts = {"name": _column(heading, table), "kind": heading.key.kind, "mark": heading.mark, "settings": settings}
    return facts | ({"over": over} if over else {})


def _json_group(group: Group) -> dict[str, str]:
    return {"model": group.model, "pruning": group.pruning, "sparsity": group.goal}


def _json_entry(entry: Entry, table: Table) -> dict[str, Any]:
    values = {}
    alone = entry.line.row.measures if len(entry.line.rows) == 1 else {}
    for heading, cell in zip(table.headings, entry.cells, strict=True):
        if cell.value:
            measure = alone.get(heading.key.column) if heading.key.kind != RECOVERY and heading.key.column else None
            values[_column(heading, table)] = {
                "value": cell.value.value,
                "error": cell.value.error,
                **({"run": str(measure.run.directory)} if measure else {}),
                **({"over_seeds": cell.value.parts} if cell.value.parts else {}),
                "best": cell.best,
                "not_different_from_best": cell.tied,
            }
    return {
        "method": entry.line.label,
        "kind": entry.line.row.kind,
        "sparsity": sparsity(entry),
        "values": values,
        "marks": entry.marks,
        **({"samples": said} if (said := samples.given(entry.line.row)[1]) else {}),
        "provenance": [provenance(row) for row in entry.line.rows],
    }


def _json_comparison(comparison: Comparison) -> dict[str, Any]:
    if comparison.reason:
        return {"tested": False, "reason": comparison.reason}
    return {"tested": True, "test": comparison.test, "different": comparison.different, **comparison.numbers}


def stages(row: Row) -> dict[str, Manifest]:
    """The manifests behind a row, by stage, in the order of the work."""
    made = {**row.origin.manifests, EVAL: row.runs[0].manifest}
    return {stage: made[stage] for stage in STAGES if stage in made}


def provenance(row: Row) -> dict[str, Any]:
    """Where a row comes from: runs, digests, settings, and what each of its stages recorded."""
    kept = ("created", "command", "digest", "versions", "hardware", "seconds", "peak_memory")
    return {
        "evaluated_as": row.name,
        "runs": [str(run.directory) for run in row.runs],
        "digest": row.digest,
        "measured_sparsity": row.sparsity,
        "base_digest": row.origin.dense_digest,
        "seeds": dict(zip(lines.SEEDED, lines.seeds(row), strict=True)),
        "cost": vars(row.cost),
        "notes": row.notes,
        "settings": settings_of(row),
        "stages": {
            stage: {**{key: made.content.get(key) for key in kept}, "inputs": made.inputs, "config": made.config}
            for stage, made in stages(row).items()
        },
    }


def _finite(value: Any) -> Any:
    """The value as strict JSON has it: without NaN and infinities, which become texts."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
