"""The metric that stands for a task, and its standard error."""

import math
from typing import Any

# Where a task has several metrics, the first of these that it has, as the papers choose.
FIRST_CHOICE = ("acc", "exact_match,strict-match", "exact_match", "word_perplexity")
# The keys of an entry that are not metrics.
FACTS = {"n", "shots", "version", "metric", "benchmark", "group"}


def headline(entry: dict[str, Any]) -> str | None:
    """The key of the metric that stands for a task: the one that is named there, else the first choice among all."""
    if entry.get("metric"):
        return str(entry["metric"])
    metrics = [k for k, v in entry.items() if isinstance(v, float) and "_stderr" not in k and k not in FACTS]
    return next((choice for choice in FIRST_CHOICE if choice in metrics), metrics[0] if metrics else None)


def stderr_of(entry: dict[str, Any], metric: str) -> float | None:
    """The standard error of a metric, None where it is not known."""
    name, comma, kind = metric.partition(",")
    error = entry.get(f"{name}_stderr{comma}{kind}")
    return error if isinstance(error, float) and not math.isnan(error) else None
