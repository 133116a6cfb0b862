"""The report as one HTML page that needs nothing else: no network, no script."""

from collections.abc import Iterator
from html import escape
from typing import Any

from lors_cli.config.dump import as_yaml
from lors_cli.reporting import data, formats, notes, plots
from lors_cli.reporting.labels import clean
from lors_cli.reporting.rows import Row
from lors_cli.reporting.runs import EVAL
from lors_cli.reporting.table import Cell, Entry, Table
from lors_cli.reporting.text import FIRST

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 0 auto; padding: 1rem;
  max-width: 100rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.5rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem }
th, td { padding: .25rem .7rem; text-align: right; white-space: nowrap; background: #fff }
thead th { border-top: 2px solid; border-bottom: 1px solid; vertical-align: bottom }
tbody { border-bottom: 1px solid #aaa } tbody:last-child { border-bottom: 2px solid #1a1a1a }
.name { text-align: left; font-weight: normal }
th.method { position: sticky; left: 0 }
.best { font-weight: bold } .nothing { color: #888 }
a { color: #0b57a4; text-decoration: none } a:hover { text-decoration: underline }
.notes { list-style: none; padding: 0; font-size: .9rem; max-width: 60rem; overflow-wrap: anywhere }
figure { margin: 1rem 0 } figcaption { font-size: .9rem; color: #444 }
figure svg { max-width: 100%; height: auto; min-width: 22rem }
details { border-bottom: 1px solid #ddd; padding: .3rem 0 } summary { cursor: pointer; overflow-wrap: anywhere }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 1rem; font-size: .85rem }
dt { color: #555 } dd { margin: 0; overflow-wrap: anywhere }
pre { background: #f5f5f5; padding: .6rem; overflow-x: auto; font-size: .8rem }
@media (max-width: 40rem) {
  body { padding: .5rem } dl { grid-template-columns: 1fr } th, td { padding: .25rem .4rem }
  th.method { white-space: normal; min-width: 7rem; max-width: 40vw }
}
@media print {
  figure { break-inside: avoid } h2, h3 { break-after: avoid }
  .wide { overflow: visible } table { font-size: 6pt } th, td { padding: 1pt 2pt } th.method { position: static }
}
"""
# The page may load nothing, whatever a name in it should look like.
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def render(table: Table) -> str:
    """The page: table, notes, plots, and for each line where it comes from."""
    parts = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>lors report</title>',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{STYLE}</style>\n</head>\n<body>",
        f"<h1>{_title(table)}</h1>",
        '<div class="wide">',
        *_table(table),
        "</div>",
        *_notes(table),
        *_left_out(table),
        "<h2>Plots</h2>",
        *(
            f"<figure><h3>{escape(title)}</h3>{svg}<figcaption>{escape(text)}</figcaption></figure>"
            for title, text, svg in plots.all_of(table)
        ),
        "<h2>Where each line comes from</h2>",
        *(_details(number, entry) for number, entry in enumerate(table.entries)),
        "</body>\n</html>",
    ]
    return "\n".join(parts) + "\n"


def _title(table: Table) -> str:
    runs = {run.directory for entry in table.entries for row in entry.line.rows for run in row.runs}
    return f"{len(runs)} run{'s' if len(runs) != 1 else ''}, {len(table.entries)} models"


def _table(table: Table) -> Iterator[str]:
    yield "<table>\n<thead><tr>"
    for name in FIRST:
        yield f'<th scope="col" class="name {name}">{name}</th>'
    for heading in table.headings:
        yield f'<th scope="col">{escape(heading.name)}{_raised(heading.mark)}</th>'
    yield "</tr></thead>"
    number = 0
    for group, firsts in zip(table.groups, formats.first_cells(table.groups), strict=True):
        yield "<tbody>"
        for entry, (base, _, sparsity) in zip(group.entries, firsts, strict=True):
            link = f'<a href="#line-{number}">{escape(entry.line.label)}</a>{_raised(", ".join(entry.marks))}'
            cells = "".join(map(_cell, entry.cells))
            yield (
                f'<tr><td class="name">{escape(base)}</td><th scope="row" class="name method">{link}</th>'
                f'<td class="name">{escape(sparsity)}</td>{cells}</tr>'
            )
            number += 1
        yield "</tbody>"
    yield "</table>"


def _cell(cell: Cell) -> str:
    kind = ' class="best"' if cell.best else "" if cell.value else ' class="nothing"'
    mark = f" {notes.TIED}" if cell.tied else ""
    return f"<td{kind}>{escape(formats.cell(cell))}{mark}</td>"


def _raised(mark: str) -> str:
    return f"<sup>{escape(mark)}</sup>" if mark else ""


def _notes(table: Table) -> Iterator[str]:
    yield '<ul class="notes">'
    for mark, text in notes.of(table, "Bold"):
        yield f"<li>{_raised(mark)} {escape(text)}</li>"
    yield "</ul>"


def _left_out(table: Table) -> Iterator[str]:
    if left := notes.left_out(table):
        yield '<h2>Left out</h2>\n<ul class="notes">'
        yield from (f"<li>{escape(text)}</li>" for text in left)
        yield "</ul>"


def _details(number: int, entry: Entry) -> str:
    # the anchor is inside, so that following a link to it opens the details
    inner = "\n".join(_provenance(row) for row in entry.line.rows)
    return (
        f"<details><summary>{escape(entry.line.label)}, {escape(clean(entry.line.row.origin.base))}</summary>"
        f'<div id="line-{number}">{inner}</div></details>'
    )


def _provenance(row: Row) -> str:
    facts: dict[str, Any] = {
        "runs": ", ".join(str(run.directory) for run in row.runs),
        "evaluated as": row.name,
        "digest": row.digest,
        "digest of the dense model": row.origin.base_digest,
        "measured sparsity": f"{row.sparsity:.6f}",
        "notes": "; ".join(row.notes),
    }
    parts = [_list(facts)]
    stages = data.stages(row)
    for stage, made in stages.items():
        parts.append(f"<h3>{escape(stage)}</h3>")
        parts.append(
            _list(
                {
                    "command": made.command,
                    "finished": made.created,
                    "took": formats.duration(made.seconds or 0.0),
                    "digest": made.digest,
                    **{f"input {name}": found for name, found in made.inputs.items()},
                    "hardware": data.hardware(made),
                    "versions": ", ".join(f"{name} {version}" for name, version in made.versions.items()),
                }
            )
        )
    last = next(stages[stage] for stage in ("train", "align", "prune", EVAL) if stage in stages)
    for name, config in {"config": last.config, "config of the evaluation": row.runs[0].config}.items():
        if config and (name == "config" or config != last.config):
            parts.append(f"<h3>{name}</h3><pre>{escape(as_yaml(config))}</pre>")
    return "\n".join(parts)


def _list(facts: dict[str, Any]) -> str:
    shown = {name: value for name, value in facts.items() if value not in (None, "")}
    lines = [f"<dt>{escape(name)}</dt><dd>{escape(clean(str(value)))}</dd>" for name, value in shown.items()]
    return f"<dl>{''.join(lines)}</dl>"
