"""Paired comparisons of evaluated models, from the items that their evaluations kept."""

import hashlib
import math
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lors_cli.evaluation import items, paired
from lors_cli.evaluation.metrics import headline
from lors_cli.reporting import columns
from lors_cli.reporting.columns import AVERAGE, PERPLEXITY, Column, Measure
from lors_cli.reporting.runs import Run

MCNEMAR, BOOTSTRAP, Z_TEST, WELCH = "McNemar", "bootstrap", "z-test", "Welch"
OTHER_ITEMS = "they were measured on other items"


@dataclass
class Comparison:
    """Whether two models differ; None where that cannot be tested, with the `reason`.

    `numbers` are the test's: p, discordant counts, differences and intervals; first minus second.
    """

    test: str = ""
    different: bool | None = None
    numbers: dict[str, float] = field(default_factory=dict)
    reason: str = ""


@dataclass(frozen=True)
class _Items:
    """The values of items and what identifies these; of perplexity also the tokens of its windows."""

    identity: str
    values: NDArray[np.float64]
    tokens: NDArray[np.float64] = field(default_factory=lambda: np.array([]))


class _UnusableError(Exception):
    """Why items cannot be compared."""


def with_best(best: dict[Column, Measure], others: list[dict[Column, Measure]], column: Column) -> list[Comparison]:
    """Compare models with the best one by a paired test in one column, which all of them have.

    Args:
        best: the best one's measures.
        others: the others'.
        column: measured, or an average.

    Returns:
        a comparison for each of the others, other minus best.

    """
    parts = column.over or (column,)
    try:
        references = [_read(best[part]) for part in parts]
    except _UnusableError as error:
        return [Comparison(reason=str(error)) for _ in others]
    comparisons: list[Comparison] = []
    usable: dict[int, list[NDArray[np.float64]]] = {}
    for other in others:
        try:
            alike = [_same(_read(other[part]), one) for part, one in zip(parts, references, strict=True)]
            usable[len(comparisons)] = [one.values for one in alike]
            comparisons.append(Comparison())
        except _UnusableError as error:
            comparisons.append(Comparison(reason=str(error)))
    if column.kind == AVERAGE:
        values = [one.values for one in references]
        tested = [_z_test([a - b for a, b in zip(one, values, strict=True)]) for one in usable.values()]
    else:
        tested = _test([one for (one,) in usable.values()], references[0], column)
    for number, comparison in zip(usable, tested, strict=True):
        comparisons[number] = comparison
    return comparisons


def evaluations(first: Run, first_model: str, second: Run, second_model: str) -> dict[str, Comparison]:
    """Compare two models of two results files, or of one, in everything that was measured alike for both."""
    one, other = columns.of_model(first, first_model), columns.of_model(second, second_model)
    return {column.name: with_best(other, [one], column)[0] for column in one if column in other}


def over_seeds(first: list[float], second: list[float]) -> Comparison:
    """Compare two settings by their results over seeds."""
    if min(len(first), len(second)) < 2 or not all(map(math.isfinite, [*first, *second])):
        return Comparison(reason="one of them has a single seed, or a result that is not finite")
    p = paired.welch(first, second)
    difference = float(np.mean(first) - np.mean(second))
    return Comparison(WELCH, p < paired.LEVEL, {"p": p, "difference": difference})


def _test(values: list[NDArray[np.float64]], reference: _Items, column: Column) -> list[Comparison]:
    if not values:
        return []
    first, second = np.stack(values), reference.values
    if column.kind == PERPLEXITY:
        if len(second) < 2:
            return [Comparison(reason="there is only one window or row") for _ in values]
        interval = paired.token_loss_difference(first, second, reference.tokens)
        ends = zip(interval.difference.tolist(), interval.low.tolist(), interval.high.tolist(), strict=True)
        return [
            Comparison(BOOTSTRAP, low > 0 or high < 0, {"difference": difference, "low": low, "high": high})
            for difference, low, high in ends
        ]
    if all(np.isin(one, (0, 1)).all() for one in (first, second)):
        test = paired.mcnemar(first, second)
        counts = zip(test.only_first.tolist(), test.only_second.tolist(), test.p.tolist(), strict=True)
        return [
            Comparison(MCNEMAR, p < paired.LEVEL, {"p": p, "only_this": b, "only_best": c, "items": len(second)})
            for b, c, p in counts
        ]
    return [_z_test([one - second]) for one in first]


def _z_test(differences: list[NDArray[np.float64]]) -> Comparison:
    if min(map(len, differences)) < 2:
        return Comparison(reason="there is only one item")
    test = paired.mean_difference(differences)
    numbers = {"p": test.p, "difference": test.difference, "stderr": test.stderr}
    return Comparison(Z_TEST, test.p < paired.LEVEL, numbers)


def _same(own: _Items, reference: _Items) -> _Items:
    if own.identity != reference.identity:
        raise _UnusableError(OTHER_ITEMS)
    return own


def _read(measure: Measure) -> _Items:
    """The items behind a number, checked to add up to it."""
    directory = measure.items
    if directory is None:
        raise _UnusableError("no items were kept")
    if not measure.task:
        return _windows(directory / f"{items.of_perplexity(measure.perplexity)}.jsonl.gz", measure.value)
    entries = measure.run.results["models"][measure.model]["tasks"]
    metric = headline(entries[measure.task])
    answers = _answers(directory, tuple(_leaves(measure.task, entries)), str(metric))
    if len(answers.values) == 0 or not math.isclose(answers.values.mean(), measure.value, rel_tol=1e-6, abs_tol=1e-9):
        raise _UnusableError("its items do not add up to its result: a file was edited, or the metric is no mean")
    return answers


def _leaves(task: str, entries: dict[str, Any]) -> Iterable[str]:
    """The tasks of a group, or the task itself."""
    children = [name for name, entry in entries.items() if entry.get("group") == task]
    if not children:
        return [task]
    return [leaf for child in children for leaf in _leaves(child, entries)]


@lru_cache(maxsize=4096)
def _answers(directory: Path, tasks: tuple[str, ...], metric: str) -> _Items:
    identity = hashlib.sha256()
    values: list[float] = []
    for task in tasks:
        if not items.is_task(task):  # it would be a path to elsewhere
            raise _UnusableError(f"no task has the name {task!r:.100}")
        with _explained(directory / f"{task}.jsonl.gz") as path:
            names, answers = items.answers(path, metric)
        identity.update(names + b"\n")
        values += answers
    return _Items(identity.hexdigest(), np.array(values))


def _windows(path: Path, value: float) -> _Items:
    with _explained(path):
        windows = items.read(path)
        losses = np.array([float(item["loss"]) for item in windows])
        tokens = np.array([float(item["tokens"]) for item in windows])
    if len(losses) == 0 or not np.isclose(np.log(value), losses.sum() / tokens.sum(), rtol=1e-6, atol=1e-9):
        raise _UnusableError("its items do not add up to its result: a file was edited")
    return _Items(hashlib.sha256(tokens.tobytes()).hexdigest(), losses, tokens)


@contextmanager
def _explained(path: Path) -> Iterator[Path]:
    """Turn what can go wrong in reading items into words."""
    try:
        yield path
    except FileNotFoundError:
        raise _UnusableError(f"its items are gone ({path.name})") from None
    except (KeyError, TypeError):
        raise _UnusableError(f"its items do not hold what was measured ({path.name})") from None
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise _UnusableError(f"its items cannot be read ({path.name}: {error})") from None
