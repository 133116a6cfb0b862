"""The results of a grid: a table, results.json, and the config of the best run as YAML."""

import json
import math
import statistics
from typing import Any

from lors_cli import console
from lors_cli.artifacts import files
from lors_cli.evaluation.metrics import perplexities
from lors_cli.run import manifest
from lors_cli.search import results
from lors_cli.search.grid import HELD_OUT, SEED, Grid
from lors_cli.search.runs import Run

FINISHED, FAILED, MISSING = "finished", "failed", "missing"
# What a manifest says of the moment and the machine; all else is the same each time that a training is done.
COST = ("created", "command", "seconds", "peak_memory", "tokens_per_second", "estimated_bytes")
NOT_SHOWN = ("config", "files", "seal")  # of a manifest


def outcome(run: Run, criterion: str, failure: str | None) -> dict[str, Any]:
    """What is known about a run: `value` is that of the criterion, `failure` why its last attempt failed."""
    directory = run.directory
    facts: dict[str, Any] = {"name": directory.name, "values": run.values, "output_dir": str(directory)}
    facts["config"] = run.config.model_dump(mode="json")
    training = None if failure else manifest.read(directory / "adapter")
    if training is None:
        return {**facts, "state": FAILED if failure else MISSING, "reason": failure}
    content = {key: value for key, value in training.content.items() if key not in NOT_SHOWN}
    facts["training"] = {key: value for key, value in content.items() if key not in COST}
    facts["cost"] = {key: value for key, value in content.items() if key in COST}
    if criterion == HELD_OUT:
        value = held_out_loss(training.facts.given)
    else:
        evaluation = manifest.read(directory / "eval")
        measured = evaluation.facts.given.get("models", {}).get("merged") if evaluation else None
        if measured is None:
            return {**facts, "state": MISSING, "reason": None}
        facts["evaluation"] = measured
        value = next(iter(perplexities(measured).values()))["value"]
    if not math.isfinite(value):
        return {**facts, "state": FAILED, "reason": f"its {criterion} is {value}"}
    return {**facts, "state": FINISHED, "reason": None, "value": value}


def held_out_loss(training: dict[str, Any]) -> float:
    """The held-out loss of the adapter that a training has kept."""
    kept: float | None = training.get("eval_loss")
    return min(training.get("eval_losses") or [math.nan]) if kept is None else kept


def write(grid: Grid, outcomes: list[dict[str, Any]]) -> str:
    """Write results.json, results.md and, if a run finished, best.yaml; the tables, to be printed."""
    groups = seed_groups(grid, outcomes)
    best = best_run(outcomes, groups)
    content = {
        "criterion": grid.criterion,
        "best": outcomes[best]["name"] if best is not None else None,
        "settings": {"config": str(grid.file), "arguments": grid.arguments, "axes": list(grid.labels)},
        "runs": outcomes,
        "seeds": groups,
    }
    words, written = (
        f"Best: the lowest {grid.criterion}{' on average over the seeds' if groups else ''}.",
        grid.directory / results.BEST,
    )
    if best is None:
        written.unlink(missing_ok=True)  # that of an earlier grid
    else:
        number = f"{grid.criterion} {outcomes[best]['value']:.6g}"
        files.write_text(written, results.best_yaml(grid.runs[best].config, written, number))
        words += f" `lors run {written}` goes on with it."
    failed = results.failed({one["name"]: one["reason"] for one in outcomes if one["state"] != FINISHED})
    seeds = seed_table(grid, groups) if groups else ""
    return results.write(grid.directory, content, [table(grid, outcomes, best), seeds, failed, words])


def seed_groups(grid: Grid, outcomes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The settings apart from the seed, each with the mean and the standard deviation over its seeds; the best first.

    A setting some of whose seeds failed comes after those that never did.
    """
    if SEED not in grid.labels:
        return []
    groups: dict[str, dict[str, Any]] = {}
    for number, one in enumerate(outcomes):
        values = {key: value for key, value in one["values"].items() if key != SEED}
        group = groups.setdefault(json.dumps(values), {"values": values, "runs": [], "failed": 0, "measured": []})
        if one["state"] == FINISHED:
            group["runs"].append(number)
            group["measured"].append(one["value"])
        else:
            group["failed"] += 1
    for group in groups.values():
        measured = group["measured"]
        group["mean"] = statistics.fmean(measured) if measured else None
        group["deviation"] = statistics.stdev(measured) if len(measured) > 1 else None
    return sorted(groups.values(), key=lambda g: (g["failed"], math.inf if g["mean"] is None else g["mean"]))


def best_run(outcomes: list[dict[str, Any]], groups: list[dict[str, Any]]) -> int | None:
    """The run with the lowest value, or of the best setting's seeds the first; None if there is no finished one."""
    if groups:
        return next((group["runs"][0] for group in groups if group["runs"]), None)
    finished = [number for number, one in enumerate(outcomes) if one["state"] == FINISHED]
    return min(finished, key=lambda number: float(outcomes[number]["value"]), default=None)


def table(grid: Grid, outcomes: list[dict[str, Any]], best: int | None) -> str:
    """A row for each run."""
    rows = []
    for number, one in enumerate(outcomes):
        training = one.get("training", {})
        done = one["state"] == FINISHED
        measured = [
            f"{one['value']:.4f}" if done else "-",
            _number(training.get("last_loss"), ".4f"),
            str(training.get("steps", "-")),
            _number(one.get("cost", {}).get("seconds"), ".1f"),
        ]
        note = "best" if number == best else "" if done else one["state"]
        rows.append([*_cells(one["values"]), *measured, note])
    header = [*grid.labels.values(), grid.criterion, "train loss", "steps", "seconds", ""]
    return console.markdown_table(header, rows)


def seed_table(grid: Grid, groups: list[dict[str, Any]]) -> str:
    """A row for each setting apart from the seed, the best first."""
    rows = []
    for position, group in enumerate(groups):
        deviation = f" ± {group['deviation']:.4f}" if group["deviation"] is not None else ""
        count = len(group["measured"])
        seeds = f"{count} of {count + group['failed']}" if group["failed"] else str(count)
        note = "best" if position == 0 and count else ""
        rows.append([*_cells(group["values"]), f"{_number(group['mean'], '.4f')}{deviation}", seeds, note])
    labels = [label for key, label in grid.labels.items() if key != SEED]
    return console.markdown_table([*labels, f"mean {grid.criterion}", "seeds", ""], rows)


def _cells(values: dict[str, Any]) -> list[str]:
    texts = (value if isinstance(value, str) else json.dumps(value) for value in values.values())
    return [results.one_line(text).replace("|", "/") for text in texts]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"
