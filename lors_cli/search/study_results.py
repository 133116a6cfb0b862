"""The results of a study: a table, results.json, and the config of the best run of each start as YAML."""

import math
import statistics
from typing import Any

from lors_cli import console
from lors_cli.artifacts import files
from lors_cli.search import outcome, points, results
from lors_cli.search.outcome import Outcome
from lors_cli.search.runs import Start
from lors_cli.search.study import Study

ALWAYS = ("arm", "settings", "perplexity")  # columns of the table, also if they are empty


def write(study: Study, rows: list[dict[str, Any]], failures: dict[str, str]) -> str:
    """Write results.json, results.md and, for each start, best.yaml; the table, to be printed."""
    shared = {start.name: outcome.models(start.config) for start in study.starts}
    plain = [
        {"start": row["row"].start.name, "arm": row["row"].arm, **row["row"].point, **row, "row": row["row"].name}
        for row in rows
    ]
    best = {start.name: chosen for start in study.starts if (chosen := _best(study, start, rows))}
    content = {
        "settings": {"file": str(study.path), "arguments": study.arguments, **study.file.model_dump(mode="json")},
        "starts": shared,
        "rows": plain,
        "failed": failures,
        "best": best,
    }
    words = [f"Best: `lors run {path}`" for path in best.values()]
    return results.write(study.output, content, [table(study, shared, rows), results.failed(failures), *words])


def table(study: Study, shared: dict[str, dict[str, Any]], rows: list[dict[str, Any]]) -> str:
    """Perplexities: a line for each model that a start or a row has measured, mean and deviation over the seeds."""
    lines = [["start", "arm", "settings", "perplexity", "s a step", "equal time"]]
    for start in study.starts:
        for model, result in shared[start.name].items():
            lines.append([start.name, model, "", _spread([_perplexity(result)]), "", ""])
        for row in (row for row in rows if row["row"].start == start):
            measured = _measured(row["runs"])
            for model in measured:
                name = f"{row['row'].arm}, {model}" if len(measured) > 1 else row["row"].arm
                seconds = f"{row['seconds_a_step']:.2f}" if "seconds_a_step" in row else ""
                equal = ""
                if "in_time" in row:
                    number = _spread(_numbers(row["in_time"]["runs"], model))
                    equal = f"{number} ({row['in_time']['steps']} steps)"
                number = _spread(_numbers(row["runs"], model))
                lines.append([start.name, name, _settings(row), number, seconds, equal])
    columns = [column for column in zip(*lines, strict=True) if column[0] in ALWAYS or any(column[1:])]
    header, *cells = ([*line] for line in zip(*columns, strict=True))
    return console.markdown_table(header, cells)


def _settings(row: dict[str, Any]) -> str:
    """The point of the row, and what its search has chosen."""
    setting = points.name({**row["row"].point, **row["values"]}).replace(",", ", ")
    return f"{setting} (edge)" if row["edge"] else setting


def _measured(runs: list[Outcome]) -> list[str]:
    """The models that the runs of a row have measured; where all diverged, a name for what is missing."""
    return list(dict.fromkeys(name for run in runs for name in run.get("models", {}))) or ["merged"]


def _numbers(runs: list[Outcome], model: str) -> list[float | None]:
    return [math.inf if "diverged" in run else _perplexity(run["models"].get(model, {})) for run in runs]


def _perplexity(result: dict[str, Any]) -> float | None:
    value: float | None = (result.get("perplexity") or {}).get("value")
    return value


def _spread(numbers: list[float | None]) -> str:
    """Mean and standard deviation; of what was not measured, a dash."""
    known = [number for number in numbers if number is not None]
    if not known:
        return "-"
    if not all(map(math.isfinite, known)):
        return "diverged"
    deviation = f" ± {statistics.stdev(known):.2f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.2f}{deviation}"


def _best(study: Study, start: Start, rows: list[dict[str, Any]]) -> str | None:
    """Write the config of the best row's first run: the lowest mean perplexity of the last model that it measures."""
    ranked = []
    for row in (row for row in rows if row["row"].start == start):
        known = [number for number in _numbers(row["runs"], _measured(row["runs"])[-1]) if number is not None]
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
