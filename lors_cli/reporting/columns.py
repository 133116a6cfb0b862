"""What may stand in one column: numbers that were measured in the same way, and no others."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from lors_cli.evaluation.metrics import (
    asked_for,
    called,
    cuts,
    dropped,
    headline,
    measured_on,
    perplexities,
    stderr_of,
    too_long,
)
from lors_cli.reporting.runs import EVAL, Run

ACCURACY, AVERAGE, PERPLEXITY, OTHER = "accuracy", "average", "perplexity", "other"
# Metrics that are shares of items, so that an average over tasks means something.
SHARES = ("acc", "exact_match", "em", "f1", "pass@", "mc1", "mc2")
LOWER_IS_BETTER = ("perplexity", "bits_per_byte", "loss", "wer", "ter")
DIGITS = 12  # how much of a digest is shown to people


@dataclass(frozen=True)
class Column:
    """A benchmark measured in one way.

    Attributes:
        name: of the benchmark.
        kind: accuracy, average, perplexity or other.
        settings: what must be equal for two numbers to be comparable, by name.
        over: of an average, the columns.
        text: what perplexity was measured on. Where the tokens are known, only they have to be equal.
        samples: what its samples are, in words.

    """

    name: str
    kind: str
    settings: tuple[tuple[str, str], ...] = ()
    over: tuple["Column", ...] = ()
    text: str = field(default="", compare=False)
    samples: str = field(default="", compare=False)

    @property
    def falls(self) -> bool:
        """Whether lower is better."""
        metric = dict(self.settings).get("metric", "")
        return self.kind == PERPLEXITY or any(word in metric for word in LOWER_IS_BETTER)


@dataclass(frozen=True)
class Measure:
    """A measured number, and where its items are.

    Attributes:
        value: as it was measured.
        error: its standard error, if that is known.
        run: that measured it.
        model: what that run calls the model.
        task: of the results; empty for perplexity.
        perplexity: the name of one of several.

    """

    value: float
    error: float | None
    run: Run
    model: str
    task: str = ""
    perplexity: str = ""

    @property
    def entry(self) -> dict[str, Any]:
        """What the results have of the task; nothing for perplexity."""
        entry: dict[str, Any] = self.run.results["models"][self.model]["tasks"][self.task] if self.task else {}
        return entry

    @property
    def items(self) -> Path | None:
        """The directory of the items; None if none were kept."""
        relative = self.run.results["models"][self.model].get("items")
        return self.run.directory / EVAL / relative if isinstance(relative, str) else None


def of_model(run: Run, model: str) -> dict[Column, Measure]:
    """Everything that a run measured of a model, by column; of a group of tasks only the whole."""
    results = run.results["models"][model]
    measures = {}
    for task, entry in results.get("tasks", {}).items():
        metric = headline(entry)
        value = entry.get(metric) if metric else None
        if metric and "group" not in entry and _is_number(value):
            column = _task_column(run, model, task, entry, metric)
            measures[column] = Measure(float(value), stderr_of(entry, metric), run, model, task)
    for name, perplexity in perplexities(results).items():
        if _is_number(perplexity["value"]):
            column = _perplexity_column(run, model, name, perplexity)
            error = perplexity.get("stderr")
            measures[column] = Measure(float(perplexity["value"]), error, run, model, perplexity=name)
    return measures


def remarks(run: Run, model: str) -> list[str]:
    """What has to be said of the numbers of a model: those that are none, and those with prompts or answers cut."""
    results = run.results["models"][model]
    values, said = {}, []
    for name, perplexity in perplexities(results).items():
        said += [f"{called(name)} {words}" for words in (too_long(perplexity), dropped(perplexity)) if words]
        values[called(name)] = perplexity.get("value")
    for task, entry in results.get("tasks", {}).items():
        if "group" not in entry:
            values[task] = entry.get(headline(entry) or "")
            said += [f"{task}: {cut}" for cut in [cuts(entry)] if cut]
    said += [f"{name} gave {value}, which is no measurement" for name, value in values.items() if not _is_number(value)]
    return said


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)


def _task_column(run: Run, model: str, task: str, entry: dict[str, Any], metric: str) -> Column:
    share = metric.startswith(SHARES)
    settings = {
        "metric": metric,
        "task": task,
        "version": entry.get("version"),
        "shots": entry.get("shots") or 0,
        "items": entry.get("n"),
        "dtype": _dtype(run, model),
        "backend": run.results["settings"].get("backend", "transformers"),
    }
    if entry.get("n") is None:  # otherwise the limit shows in the number of items
        settings["limit"] = run.results["settings"].get("limit")
    for key in ("chat_template", "system"):
        if given := run.results["settings"].get(key):
            settings[key.replace("_", " ")] = given
    files = run.manifest.settings.get("task_files") or {}
    own = {name.partition(": ")[2]: digest for name, digest in files.items() if name.partition(": ")[0] == task}
    settings |= {f"file {name}": str(digest)[:DIGITS] for name, digest in sorted(own.items())}
    return Column(str(entry.get("benchmark") or task), ACCURACY if share else OTHER, _texts(settings))


def _perplexity_column(run: Run, model: str, name: str, measured: dict[str, Any]) -> Column:
    asked = asked_for(run.results["settings"], name)
    dataset = asked.get("dataset")
    dataset = dataset if isinstance(dataset, dict) else {"path": dataset}
    named = [str(dataset.get("path")).rstrip("/").rpartition("/")[2]]
    named += [f"{key} {dataset[key]}" for key in ("name", "split", "limit") if dataset.get(key)]
    text, tokens = ", ".join(named), measured.get("token_digest")
    settings = {
        "sequence length": asked.get("sequence_length"),
        "predicted tokens": measured.get("tokens"),
        "tokens": str(tokens)[:DIGITS] if tokens else f"of {text}",
        "windows": asked.get("windows"),
        "BOS": asked.get("bos"),
        "dtype": _dtype(run, model),
    }
    if "rows" in measured:
        settings |= {"format": dataset.get("format"), "prompts": asked.get("prompt_tokens"), "rows": measured["rows"]}
    return Column(called(name), PERPLEXITY, _texts(settings), text=text, samples=measured_on(asked, measured))


def _dtype(run: Run, model: str) -> Any:
    """The dtype of a model; results have one for all, or for `auto` one for each."""
    dtype = run.results["settings"].get("dtype")
    return dtype.get(model) if isinstance(dtype, dict) else dtype


def _texts(settings: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((key, str(value)) for key, value in settings.items())


def differing(columns: list[Column]) -> list[str]:
    """The names of the settings in which the columns of one benchmark differ."""
    named = [dict(column.settings) for column in columns]
    keys = dict.fromkeys(key for settings in named for key in settings)
    return [key for key in keys if len({settings.get(key) for settings in named}) > 1]


def averages(sets: list[frozenset[Column]], order: list[Column]) -> list[Column]:
    """The averages that make sense for rows with these accuracies: over each set of at least two that no other holds.

    A row that lacks one of a set does not have an average over it. Rows that were measured in two ways have one each.
    """
    largest = [one for one in dict.fromkeys(sets) if len(one) > 1 and not any(one < other for other in sets)]
    members = [tuple(column for column in order if column in one) for one in largest]
    return [Column("average", AVERAGE, (), over) for over in sorted(members, key=lambda m: [order.index(c) for c in m])]
