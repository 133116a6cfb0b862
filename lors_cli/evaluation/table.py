"""The results of one evaluation as a Markdown table."""

import textwrap
from typing import Any

from lors_cli import console
from lors_cli.evaluation.metrics import (
    asked_for,
    called,
    cuts,
    dropped,
    has_stderr,
    headline,
    measured_on,
    perplexities,
    stderr_of,
    too_long,
)

UNKNOWN = "—"
CUT_OFF, LINE_END = " …", " ⏎ "
SAMPLES_WIDTH = 74  # columns, which with the indentation of a block fit a terminal
CUT = " †"  # marks numbers with prompts or answers that were cut


def average(entries: dict[str, dict[str, Any]]) -> float | None:
    """The mean over a preset's benchmarks; None where there are fewer than two."""
    values = [entry[entry["metric"]] for entry in entries.values() if "benchmark" in entry]
    return sum(values) / len(values) if len(values) > 1 else None


def cell(entry: dict[str, Any]) -> str:
    """The metric of a task that the table shows, with its standard error."""
    metric = headline(entry)
    if metric is None or metric not in entry:
        return "-"
    error = stderr_of(entry, metric)
    shown = f" ± {error:.4f}" if error is not None else f" ± {UNKNOWN}" if has_stderr(entry, metric) else ""
    return f"{metric.partition(',')[0]} {entry[metric]:.4f}{shown}" + (CUT if cuts(entry) else "")


def render(results: dict[str, Any]) -> str:
    """A row for each model, and what the numbers depend on. A group of tasks has one column, not one for each task."""
    models, settings = results["models"], results["settings"]
    first = next(iter(models.values()))
    tasks = [task for task, entry in first["tasks"].items() if "group" not in entry]
    named = list(perplexities(first))
    averaged = "average" in first
    header = ["model", "sparsity", *map(called, named), *tasks, *(["average"] if averaged else [])]
    rows = [
        [
            name,
            f"{entry['sparsity']:.4f}",
            *(f"{one['value']:.2f}" for one in perplexities(entry).values()),
            *(cell(entry["tasks"][task]) for task in tasks),
            *([f"{entry['average']:.4f}"] if averaged else []),
        ]
        for name, entry in models.items()
    ]
    lines = [console.markdown_table(header, rows), ""]
    for name, one in perplexities(first).items():
        asked = asked_for(settings, name)
        lines.append(
            f"P{called(name)[1:]}: {asked['dataset']['path']}, {measured_on(asked, one)},"
            f" {one['tokens']} predicted{'' if asked.get('bos') else ', no BOS'}. dtype: {settings['dtype']}."
        )
    if tasks:
        counts = ", ".join(_conditions(task, first["tasks"][task]) for task in tasks)
        by = f"lm-eval {results['versions'].get('lm_eval', '?')}, {settings['backend']}"
        lines.append(f"Tasks: {by}; {counts}.")
    for name, entry in models.items():
        for part, one in perplexities(entry).items():
            lines += [f"{name}: {called(part)} {said}." for said in filter(None, (too_long(one), dropped(one)))]
        lines += [f"{CUT.strip()} {name}: {task} {cut}." for task in tasks if (cut := cuts(entry["tasks"][task]))]
    return "\n".join([*lines, *_samples(results)]) + "\n"


def _samples(results: dict[str, Any]) -> list[str]:
    """What the models say, in a block of text that Markdown leaves as it is."""
    said = {name: entry["samples"] for name, entry in results["models"].items() if entry.get("samples")}
    if not said:
        return []
    most = results["settings"]["samples"]["max_new_tokens"]
    width = max(map(len, said)) + 2
    lines = [
        "",
        f"What they say, taking the most probable tokens, at most {most} ({CUT_OFF.strip()}: cut off there):",
        "",
    ]
    for number, first in enumerate(next(iter(said.values()))):
        lines += _filled(f"{number + 1}. ", 3, first["prompt"])
        for name, answers in said.items():
            one = answers[number]
            lines += _filled(f"   {name}:".ljust(width + 3), width + 3, one["text"] + ("" if one["ended"] else CUT_OFF))
        lines.append("")
    return [*lines[:3], *(f"    {line}".rstrip() for line in lines[3:-1])]


def _filled(head: str, indent: int, text: str) -> list[str]:
    """A text on lines of a terminal's width, the end of a line and what cannot be printed made visible."""
    shown = visible(text)
    return textwrap.wrap(head + shown, SAMPLES_WIDTH, subsequent_indent=" " * indent)


def visible(text: str) -> str:
    """A text in one line: the ends of its lines as a sign, and what cannot be printed as Python writes it."""
    text = text.replace("\n", LINE_END)
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)


def _conditions(task: str, entry: dict[str, Any]) -> str:
    total = entry.get("total")
    of = f"{entry['n']} of {total}" if total and total != entry["n"] else entry["n"]
    return f"{task} {of} items, {entry['shots'] or 0} shots"
