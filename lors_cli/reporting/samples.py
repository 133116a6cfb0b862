"""What the models say to the same prompts, beside each other."""

from dataclasses import dataclass, field
from typing import Any

from lors_cli.evaluation.table import CUT_OFF, visible
from lors_cli.reporting.rows import Row, clean
from lors_cli.reporting.table import Table

Answer = tuple[str, str]  # what a model is called, and what it said in one line


@dataclass
class Asked:
    """A prompt of the models made from one dense one, with what each said that was asked in the same way."""

    model: str
    prompt: str
    how: str
    answers: list[Answer] = field(default_factory=list)


def of(table: Table) -> list[Asked]:
    """All prompts, in the order of the lines."""
    asked: dict[tuple[Any, ...], Asked] = {}
    for entry in table.entries:
        for row in entry.line.rows:
            settings, answers = given(row)
            model, how = clean(row.origin.dense), _how(settings)
            for one in answers:
                known = Asked(model, visible(one["prompt"]), how)
                text = visible(one["text"]) + ("" if one.get("ended") else CUT_OFF)
                asked.setdefault((model, one["prompt"], how), known).answers.append((entry.line.label, text))
    return list(asked.values())


def given(row: Row) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """How a model was asked, by the settings of the evaluation, and its answers; none if it was not."""
    for run in row.runs:
        for name in dict.fromkeys([row.name, *run.results["models"]]):
            entry = run.results["models"].get(name) or {}
            if entry.get("samples") and (name == row.name or (row.digest and entry.get("digest") == row.digest)):
                return run.results["settings"], entry["samples"]
    return {}, []


def _how(settings: dict[str, Any]) -> str:
    most = (settings.get("samples") or {}).get("max_new_tokens")
    system = f", after the system's {clean(repr(settings['system']))}" if settings.get("system") else ""
    return f"the most probable tokens, at most {most}{system}"
