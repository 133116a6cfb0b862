"""The report as one HTML page that needs nothing else: no network, no script."""

import re
from html import escape
from itertools import count
from typing import Any

import matplotlib
from jinja2 import Environment, PackageLoader, StrictUndefined

from lors_cli.config.dump import as_yaml
from lors_cli.reporting import curves, export, notes, plots, samples, text
from lors_cli.reporting.rows import Row, clean
from lors_cli.reporting.runs import EVAL
from lors_cli.reporting.table import Table


def render(table: Table) -> str:
    """The page: table, notes, plots, and for each line where it comes from."""
    environment = Environment(
        loader=PackageLoader("lors_cli.reporting"),
        autoescape=True,  # a name may look like HTML
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "measured": text.measured,
        "clean": clean,
        "facts": _facts,
        "configs": _configs,
        "plural": text.plural,
    }
    numbers = count()
    groups = [
        [(next(numbers), entry, first) for entry, first in zip(group.entries, firsts, strict=True)]
        for group, firsts in zip(table.groups, text.first_cells(table.groups), strict=True)
    ]
    return environment.get_template("report.html").render(
        runs={run.directory for entry in table.entries for row in entry.line.rows for run in row.runs},
        first=text.FIRST,
        headings=table.headings,
        groups=groups,
        tied=notes.TIED,
        notes=notes.of(table, "Bold"),
        left_out=notes.left_out(table),
        plots=all_plots(table),
        samples=samples.of(table),
    )


def all_plots(table: Table) -> list[tuple[str, str, str]]:
    """A title, an explanation and an SVG for each plot for which there are data."""
    with matplotlib.rc_context(plots.STYLE):
        drawn = [curves.of(table), plots.accuracies(table), plots.sparsities(table), plots.memory(table)]
        return [(title, text, _named(svg, title, text)) for some in drawn for title, text, svg in some]


def _named(svg: str, title: str, text: str) -> str:
    """A picture with a name and a description for those who hear the page."""
    name, said = escape(title), escape(text)
    return re.sub("<svg", f'<svg role="img" aria-label="{name}. {said}"', svg, count=1).replace(
        ">", f"><title>{name}</title><desc>{said}</desc>", 1
    )


def _facts(row: Row) -> dict[str, dict[str, Any]]:
    """What is known of a model, and of each stage behind it by its name."""
    facts: dict[str, dict[str, Any]] = {
        "": {
            "runs": ", ".join(str(run.directory) for run in row.runs),
            "evaluated as": row.name,
            "digest": row.digest,
            "digest of the dense model": row.origin.dense_digest,
            "measured sparsity": f"{row.sparsity:.6f}",
            "notes": "; ".join(row.notes),
        }
    }
    for stage, made in export.stages(row).items():
        facts[stage] = {
            "command": made.command,
            "finished": made.created,
            "took": text.duration(made.seconds or 0.0),
            "digest": made.digest,
            **{f"input {name}": digest for name, digest in made.inputs.items()},
            "hardware": export.hardware(made),
            "versions": ", ".join(f"{name} {version}" for name, version in made.versions.items()),
        }
    return facts


def _configs(row: Row) -> dict[str, str]:
    """The config that made a model, and that of its evaluation if it is another one, as YAML."""
    stages = export.stages(row)
    last = next(stages[stage] for stage in ("train", "quantize", "align", "prune", EVAL) if stage in stages)
    configs = {"config": last.config}
    if row.runs[0].config != last.config:
        configs["config of the evaluation"] = row.runs[0].config
    return {name: as_yaml(config) for name, config in configs.items() if config}
