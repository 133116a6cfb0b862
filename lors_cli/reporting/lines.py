"""The numbers of each line of the table: measured ones, averages, recoveries and costs; of one row, or over seeds."""

import math
import statistics
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from lors_cli.artifacts import digest
from lors_cli.reporting.columns import ACCURACY, AVERAGE, OTHER, PERPLEXITY, Column
from lors_cli.reporting.origin import DENSE, ORIGINAL, PRUNED, TUNED
from lors_cli.reporting.rows import Row, settings
from lors_cli.run import manifest

# What a seed changes, besides the result: the seed itself, and the calibration windows that it draws.
OF_A_SEED = ("seed", "calibration_tokens")
SEEDED = ("prune", "align", "quantize", "train")
NEGLIGIBLE = 1e-3  # a smaller loss, as a share of the dense model's number, has no recovery
RECOVERY = "recovery"
COSTS = ("reduction", "model_parameters", "tokens", "trainable", "permille", "seconds", "peak_bytes", "size_bytes")


@dataclass(frozen=True)
class Key:
    """What a column of the table holds: a measured column, its recovery, or a cost."""

    kind: str
    column: Column | None = None


@dataclass
class Value:
    """A number.

    Attributes:
        value: the number, over seeds their mean.
        error: its standard error, over seeds the standard deviation.
        parts: over seeds, the numbers.

    """

    value: float
    error: float | None = None
    parts: list[float] = field(default_factory=list)


@dataclass
class Line:
    """A line of the table: of one row, or of several that differ by their seeds alone."""

    rows: list[Row]
    values: dict[Key, Value]
    label: str = ""

    @property
    def row(self) -> Row:
        """The only row, or the first."""
        return self.rows[0]


def of(
    rows: list[Row], order: list[Column], averages: list[Column], *, over_seeds: bool
) -> tuple[list[Line], list[str]]:
    """The lines of all rows.

    Args:
        rows: all rows.
        order: the measured columns.
        averages: columns over several of them.
        over_seeds: whether rows that differ by the seed alone become one.

    Returns:
        the lines in the order of their first rows, and what has to be said about seeds.

    """
    measured = {id(row): _measured(row, order, averages) for row in rows}
    for row in rows:
        measured[id(row)] |= _recoveries(row, rows, measured)
        measured[id(row)] |= _costs(row)
    if not over_seeds:
        return [Line([row], measured[id(row)]) for row in rows], []
    groups, notes = _seed_groups(rows)
    return [Line(group, _over([measured[id(row)] for row in group])) for group in groups], notes


def _measured(row: Row, order: list[Column], averages: list[Column]) -> dict[Key, Value]:
    values = {
        Key(column.kind, column): Value(row.measures[column].value, row.measures[column].error)
        for column in order
        if column in row.measures
    }
    for column in averages:
        if all(part in row.measures for part in column.over):
            parts = [row.measures[part] for part in column.over]
            errors = [part.error for part in parts if part.error is not None]
            # the tasks' items are drawn independently
            error = math.hypot(*errors) / len(parts) if len(errors) == len(parts) else None
            values[Key(AVERAGE, column)] = Value(statistics.fmean(part.value for part in parts), error)
    return values


def _recoveries(row: Row, rows: list[Row], measured: dict[int, dict[Key, Value]]) -> dict[Key, Value]:
    """(tuned - pruned) / (dense - pruned) of averages, of a single accuracy, and of perplexity.

    Compared is with the very model that was tuned and the dense one, each measured as the tuned one was.
    """
    if row.kind != TUNED or row.origin.target == ORIGINAL or not row.origin.pruned_digest:
        return {}
    pruned = [r for r in rows if r.kind == PRUNED and r.digest == row.origin.pruned_digest]
    dense = [r for r in rows if r.kind == DENSE and r.dense == row.dense]
    kinds = {AVERAGE, PERPLEXITY}
    if [key.kind for key in measured[id(row)]].count(ACCURACY) == 1:  # its own average
        kinds.add(ACCURACY)
    recoveries = {}
    for key, value in measured[id(row)].items():
        before = next((measured[id(r)][key].value for r in pruned if key in measured[id(r)]), None)
        whole = next((measured[id(r)][key].value for r in dense if key in measured[id(r)]), None)
        if key.kind not in kinds or before is None or whole is None:
            continue
        numbers = (value.value, before, whole)
        lost = before - whole if key.column and key.column.falls else whole - before
        if all(map(math.isfinite, numbers)) and lost > NEGLIGIBLE * abs(whole):
            recoveries[Key(RECOVERY, key.column)] = Value((value.value - before) / (whole - before))
    return recoveries


def _costs(row: Row) -> dict[Key, Value]:
    cost = row.cost
    permille = 1000 * cost.trainable / cost.parameters if cost.trainable and cost.parameters else None
    numbers: dict[str, float | None] = {name: getattr(cost, name, None) for name in COSTS} | {"permille": permille}
    return {Key(name): Value(float(number)) for name, number in numbers.items() if number is not None}


def _seed_groups(rows: list[Row]) -> tuple[list[list[Row]], list[str]]:
    groups: dict[str, list[Row]] = {}
    notes = []
    for row in rows:
        identity = _apart_from_seed(row)
        if identity is None:
            groups[f"alone {len(groups)}"] = [row]
            continue
        group = groups.setdefault(identity, [])
        if any(seeds(other) == seeds(row) for other in group):
            notes.append(
                f"{row.runs[0].directory} repeats the seed of a run with the same settings, so it is no further sample:"
                " it stands alone"
            )
            groups[f"alone {len(groups)}"] = [row]
        else:
            group.append(row)
    return list(groups.values()), notes


def _apart_from_seed(row: Row) -> str | None:
    """What is equal for rows that differ by the seed alone; None where the settings are not known."""
    needed = {PRUNED: {"prune"}, TUNED: {"train"} if row.origin.unpruned else {"prune", "train"}}.get(row.kind)
    if needed is None or not needed <= row.origin.manifests.keys():
        return None
    measured = sorted((column.name, column.settings) for column in row.measures)
    return digest.of_value([alike(row, OF_A_SEED), measured])


def alike(row: Row, apart_from: tuple[str, ...]) -> str:
    """What is equal for models that were made in the same way, apart from some settings."""
    flat = {key: leaf for key, leaf in manifest.flat(settings(row)).items() if key.rpartition(".")[2] not in apart_from}
    return digest.of_value([row.dense, row.kind, row.origin.target, flat])


def seeds(row: Row) -> tuple[Any, ...]:
    """The seeds of the stages that have one."""
    return tuple(settings(row)[stage].get("seed") for stage in SEEDED)


def _over(group: list[dict[Key, Value]]) -> dict[Key, Value]:
    if len(group) == 1:
        return group[0]
    parts: dict[Key, list[float]] = defaultdict(list)
    for values in group:
        for key, value in values.items():
            parts[key].append(value.value)
    means = {}
    for key, numbers in parts.items():
        if len(numbers) == len(group):  # nothing is averaged over some of them
            finite = all(map(math.isfinite, numbers))
            means[key] = Value(statistics.fmean(numbers), statistics.stdev(numbers) if finite else None, numbers)
    return means


def keys(lines: list[Line], order: list[Column], averages: list[Column]) -> list[Key]:
    """The columns of the table, in order, without empty ones."""
    there = {key for line in lines for key in line.values}
    wanted = [Key(ACCURACY, column) for column in order if column.kind == ACCURACY]
    wanted += [Key(AVERAGE, column) for column in averages]
    wanted += [Key(kind, column) for kind in (PERPLEXITY, OTHER) for column in order if column.kind == kind]
    wanted += [Key(RECOVERY, column) for column in [*averages, *order]]
    wanted += [Key(name) for name in COSTS]
    return [key for key in wanted if key in there]
