"""Numbers of the runs of a row, and how those of two rows with the same seeds differ."""

import math
import statistics
from collections.abc import Callable
from typing import Any

from lors_cli.evaluation.metrics import perplexities
from lors_cli.search.outcome import Outcome

Number = Callable[[Outcome], float | None]  # what a run came to; None: not measured
PERPLEXITY = "perplexity"


def of_model(model: str) -> Number:
    """The perplexity of a model of a run, infinite where its training diverged."""
    return lambda run: math.inf if "diverged" in run else value(run["models"].get(model, {}))


def of_evaluation(name: str) -> Number:
    """The perplexity of the merged model in a further evaluation."""
    return lambda run: (
        math.inf if "diverged" in run else value(run.get("evaluations", {}).get(name, {}).get("merged", {}))
    )


def value(result: dict[str, Any]) -> float | None:
    """The perplexity in the results of a model, of several the first; None if that was not measured."""
    found: float | None = next(iter(perplexities(result).values()), {}).get("value")
    return found


def measured(runs: list[Outcome]) -> list[str]:
    """The models that the runs of a row have measured; where all diverged, a name for what is missing."""
    return list(dict.fromkeys(name for run in runs for name in run.get("models", {}))) or ["merged"]


def spread(numbers: list[float | None]) -> str:
    """Mean and standard deviation; of what was not measured, a dash."""
    known = [number for number in numbers if number is not None]
    if not known:
        return "-"
    if not all(map(math.isfinite, known)):
        return "diverged"
    deviation = f" ± {statistics.stdev(known):.2f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.2f}{deviation}"


def difference(runs: list[Outcome], others: list[Outcome], number: Number) -> dict[str, Any] | None:
    """The numbers of `runs` minus those of `others`, seed by seed: their mean and its standard error.

    None where one is missing or diverged: a mean over other seeds than the rest of a table would mislead.
    """
    pairs = [(number(run), number(other)) for run, other in zip(runs, others, strict=True)]
    minus = [one - other for one, other in pairs if one is not None and other is not None]
    if len(minus) < len(pairs) or not all(map(math.isfinite, minus)):
        return None
    error = statistics.stdev(minus) / math.sqrt(len(minus)) if len(minus) > 1 else None
    return {"by_seed": minus, "mean": statistics.mean(minus), "standard_error": error}


def shown(minus: dict[str, Any] | None) -> str:
    """A difference in a table: mean ± standard error; of one seed its value."""
    if minus is None:
        return "-"
    error = minus["standard_error"]
    return f"{minus['mean']:+.2f}" if error is None else f"{minus['mean']:+.2f} ± {error:.2f}"
