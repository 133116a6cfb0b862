"""The results of a study: tables, results.json, and the config of the best run of each start as YAML."""

import math
import statistics
from collections.abc import Iterator
from typing import Any

from lors_cli import console
from lors_cli.artifacts import files
from lors_cli.search import outcome, paired, points, results
from lors_cli.search.outcome import Outcome
from lors_cli.search.runs import Start
from lors_cli.search.study import Study

ALWAYS = ("arm", "settings", "perplexity")  # columns of the table, also if they are empty
Rows = list[dict[str, Any]]


def write(study: Study, rows: Rows, failures: dict[str, str]) -> str:
    """Write results.json, results.md and, for each start, best.yaml; the tables, to be printed."""
    shared = {start.name: _of_start(study, start) for start in study.starts}
    for row in rows:
        row |= _tokens(row) | _compared(study, rows, row)
    plain = [
        {"start": row["row"].start.name, "arm": row["row"].arm, **row["row"].point, **row, "row": row["row"].name}
        for row in rows
    ]
    best = {start.name: chosen for start in study.starts if (chosen := _best(study, start, rows))}
    content = {
        "settings": {"file": str(study.path), "arguments": study.arguments, **study.file.model_dump(mode="json")},
        "starts": {name: facts["models"] for name, facts in shared.items()},
        "shared": {name: {key: one for key, one in facts.items() if key != "models"} for name, facts in shared.items()},
        "rows": plain,
        "failed": failures,
        "left_out": study.left_out,
        "best": best,
    }
    words = [f"Best: `lors run {path}`" for path in best.values()]
    left_out = results.listed("Left out:", study.left_out)
    parts = [table(study, shared, rows), differences(study, rows), results.failed(failures), left_out, *words]
    return results.write(study.output, content, parts)


def _of_start(study: Study, start: Start) -> dict[str, Any]:
    """What a start's models have measured, in further evaluations too, and the tokens that each has seen."""
    models = outcome.models(start.config)
    seen = {name: outcome.tokens_seen(start.directory / name) for name in models if name != "dense"}
    return {"models": models, "tokens": seen, **outcome.further(outcome.start_evaluations(study, start))}


def _tokens(row: dict[str, Any]) -> dict[str, Any]:
    """The tokens that the model of a row has seen: in training, and before, as those of a calibration."""
    run = next((run for run in row["runs"] if "training" in run), None)
    trained = (run["training"]["tokens"] or 0) if run else 0
    if not run or not trained:
        return {}
    before = run["seen_before"]
    return {"tokens": {"training": trained, "before": before, "seen": trained + before}}


def table(study: Study, shared: dict[str, dict[str, Any]], rows: Rows) -> str:
    """Perplexities: a line for each model that a start or a row has measured, mean and deviation over the seeds."""
    texts = list(study.file.evaluations)
    lines = [["start", "arm", "settings", "perplexity", *texts, "tokens seen", "s before", "s a step", "equal time"]]
    for start in study.starts:
        facts = shared[start.name]
        for model, result in facts["models"].items():
            others = [facts.get("evaluations", {}).get(name, {}).get(model, {}) for name in texts]
            numbers = [paired.spread([paired.value(one)]) if paired.value(one) else "" for one in others]
            seen = f"{tokens:,}" if (tokens := facts["tokens"].get(model)) else ""
            lines.append([start.name, model, "", paired.spread([paired.value(result)]), *numbers, seen, "", "", ""])
        for row in (row for row in rows if row["row"].start == start):
            lines += _lines(row, texts)
    columns = [column for column in zip(*lines, strict=True) if column[0] in ALWAYS or any(column[1:])]
    header, *cells = ([*line] for line in zip(*columns, strict=True))
    return console.markdown_table(header, cells)


def _lines(row: dict[str, Any], texts: list[str]) -> Iterator[list[str]]:
    """The lines of a row: one for each model that it has measured."""
    models = paired.measured(row["runs"])
    for model in models:
        name = f"{row['row'].arm}, {model}" if len(models) > 1 else row["row"].arm
        times = (
            [f"{row['seconds_before']:.0f}", f"{row['seconds_a_step']:.2f}"] if "seconds_a_step" in row else ["", ""]
        )
        others = [_numbers(row["runs"], paired.of_evaluation(text)) if model == "merged" else [] for text in texts]
        further = [paired.spread(one) if any(number is not None for number in one) else "" for one in others]
        seen = f"{row['tokens']['seen']:,}" if "tokens" in row else ""
        equal = ""
        if "in_time" in row:
            number = paired.spread(_numbers(row["in_time"]["runs"], paired.of_model(model)))
            equal = f"{number} ({row['in_time']['steps']} steps)"
        number = paired.spread(_numbers(row["runs"], paired.of_model(model)))
        yield [row["row"].start.name, name, _settings(row), number, *further, seen, *times, equal]


def differences(study: Study, rows: Rows) -> str:
    """The table of how the arms of a start differ from `compare_to`, seed by seed; nothing without such an arm."""
    compared = [row for row in rows if row.get("minus")]
    if not compared:
        return ""
    columns = list(dict.fromkeys(name for row in compared for name, minus in row["minus"].items() if minus))
    cells = [
        [
            row["row"].start.name,
            row["row"].arm,
            points.name(row["row"].point),
            *(paired.shown(row["minus"].get(name)) for name in columns),
        ]
        for row in compared
    ]
    lines = [["start", "arm", "settings", *columns], *cells]
    kept = [column for column in zip(*lines, strict=True) if column[0] in ("arm", *columns) or any(column[1:])]
    header, *body = ([*line] for line in zip(*kept, strict=True))
    title = f"Minus {study.file.compare_to}, seed by seed: mean ± standard error"
    return f"{title}\n\n{console.markdown_table(header, body)}"


def _compared(study: Study, rows: Rows, row: dict[str, Any]) -> dict[str, Any]:
    """How a row differs from that of `compare_to` on the same start, at the same point, by what is compared."""
    own = row["row"]
    other = next(
        (
            one
            for one in rows
            if (one["row"].start, one["row"].arm, one["row"].point) == (own.start, study.file.compare_to, own.point)
        ),
        None,
    )
    if other is None or other is row:
        return {}
    numbers = {paired.PERPLEXITY: paired.of_model(paired.measured(row["runs"])[-1])}
    numbers |= {name: paired.of_evaluation(name) for name in study.file.evaluations}
    minus = {name: paired.difference(row["runs"], other["runs"], number) for name, number in numbers.items()}
    if "in_time" in row:
        timed = row["in_time"]["runs"], other["in_time"]["runs"]
        minus |= {f"{name}, equal time": paired.difference(*timed, number) for name, number in numbers.items()}
    return {"minus": minus}


def _settings(row: dict[str, Any]) -> str:
    """The point of the row, and what its search has chosen."""
    setting = points.name({**row["row"].point, **row["values"]}).replace(",", ", ")
    return f"{setting} (edge)" if row["edge"] else setting


def _numbers(runs: list[Outcome], number: paired.Number) -> list[float | None]:
    return [number(run) for run in runs]


def _best(study: Study, start: Start, rows: Rows) -> str | None:
    """Write the config of the best row's first run: the lowest mean perplexity of the last model that it measures."""
    ranked = []
    for row in (row for row in rows if row["row"].start == start):
        numbers = _numbers(row["runs"], paired.of_model(paired.measured(row["runs"])[-1]))
        known = [number for number in numbers if number is not None]
        if known and math.isfinite(mean := statistics.mean(known)):
            ranked.append((mean, row))
    path = start.directory / results.BEST
    if not ranked:
        path.unlink(missing_ok=True)  # that of an earlier search
        return None
    mean, row = min(ranked, key=lambda pair: pair[0])
    config = study.run(row["row"], row["values"]).config
    files.write_text(path, results.best_yaml(config, path, f"perplexity {mean:.6g}"))
    return str(path)
