"""The metric that stands for a task, and its standard error."""

import math
from typing import Any

# Where a task has several metrics, the first of these that it has, as the papers choose.
FIRST_CHOICE = ("acc", "exact_match,strict-match", "exact_match", "word_perplexity")
# The keys of an entry that are not metrics.
FACTS = {"n", "total", "shots", "version", "metric", "benchmark", "group", "truncated", "unfinished", "own_examples"}


def headline(entry: dict[str, Any]) -> str | None:
    """The key of the metric that stands for a task: the one that is named there, else the first choice among all."""
    if entry.get("metric"):
        return str(entry["metric"])
    metrics = [k for k, v in entry.items() if isinstance(v, float) and "_stderr" not in k and k not in FACTS]
    return next((choice for choice in FIRST_CHOICE if choice in metrics), metrics[0] if metrics else None)


def stderr_of(entry: dict[str, Any], metric: str) -> float | None:
    """The standard error of a metric, None where it is not known."""
    error = entry.get(_stderr(metric))
    return error if isinstance(error, float) and math.isfinite(error) else None


def has_stderr(entry: dict[str, Any], metric: str) -> bool:
    """Whether a metric has a standard error, be it that its items were too few to know it."""
    return _stderr(metric) in entry


def _stderr(metric: str) -> str:
    name, comma, kind = metric.partition(",")
    return f"{name}_stderr{comma}{kind}"


def cuts(entry: dict[str, Any]) -> str:
    """What makes the numbers of a task doubtful, in words; empty if nothing does, or if that is not known."""
    words = {"truncated": "prompts were longer than the model's positions and lost their beginning"}
    words["unfinished"] = "answers were cut at the longest length"
    words["own_examples"] = "prompts had their own item with its answer among the examples"
    cut = [f"{entry[key]} of {entry['n']} {text}" for key, text in words.items() if entry.get(key)]
    late = entry.get("out_of_time")
    return ", ".join([*cut, *([f"{late:.1%} of the programs ran out of time, and count as wrong"] if late else [])])


def perplexities(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The perplexities of a model by their names; the only one has none. Where one has to do, it is the first."""
    alone = {"": results["perplexity"]} if results.get("perplexity") else {}
    return {**alone, **(results.get("perplexities") or {})}


def called(name: str) -> str:
    """What tables call a perplexity."""
    return f"perplexity {name}" if name else "perplexity"


def asked_for(settings: dict[str, Any], name: str) -> dict[str, Any]:
    """What the settings of results say of a perplexity."""
    recorded = settings.get("perplexity")
    every = recorded if isinstance(recorded, list) else [recorded]
    return next((one for one in every if isinstance(one, dict) and one.get("name", "") == name), {})


def measured_on(asked: dict[str, Any], measured: dict[str, Any]) -> str:
    """In words what the samples of a perplexity are."""
    if "rows" not in measured:
        return f"windows of {asked.get('sequence_length')} tokens"
    prompts = "with their prompts" if asked.get("prompt_tokens") else "without their prompts"
    kind = (asked.get("dataset") or {}).get("format")
    return f"{measured['rows']} rows ({kind}) of at most {asked.get('sequence_length')} tokens {prompts}"


def dropped(perplexity: dict[str, Any]) -> str:
    """That rows were left out of a perplexity, in words; empty if none were."""
    count, rows = perplexity.get("dropped"), perplexity.get("rows")
    return f"without {count} of {rows} rows, of which nothing that counts was left" if count else ""


def too_long(perplexity: dict[str, Any]) -> str:
    """That the windows of a perplexity are longer than what the model was made for, in words; empty if they are not."""
    positions = perplexity.get("positions")
    return f"on windows that are longer than the model's {positions} positions" if positions else ""
