"""``lors eval``: any models -> <output_dir>/eval, the dense baseline first, side by side in one table."""

import gc
import json
import logging
import math
from pathlib import Path
from typing import Any

import torch

from lors_cli import console
from lors_cli.artifacts import digest, manifest
from lors_cli.artifacts.publish import scratch
from lors_cli.config.schema import Config, Eval
from lors_cli.data import windows
from lors_cli.evaluation.perplexity import perplexity
from lors_cli.models import load, source
from lors_cli.stages import common, inspect
from lors_cli.stages.job import Job

log = logging.getLogger(__name__)

PROGRESS = "progress.json"  # what an interrupted evaluation has measured so far
# What the table shows of a task that has several metrics.
FIRST_CHOICE = ("acc", "exact_match,strict-match", "exact_match", "word_perplexity")


def prepare(config: Config, earlier: list[str]) -> Job:
    """Check that the models, the text and the tasks are there; load no weights.

    Raises:
        RequestError: something is missing.

    """
    section = common.section(config, "eval", config.eval)
    if section.perplexity:
        next(section.perplexity.dataset.source("eval.perplexity.dataset").texts())
    tasks, task_digests = _load_tasks(section)
    device = load.pick_device(config.device)
    models = {name: _directory(config, name, earlier) for name in sorted(section.models, key="dense".__ne__)}
    skeletons = {}
    for name, directory in models.items():
        structure = common.structure_directory(config, directory, earlier)
        skeletons[name] = load.skeleton(structure, trust_remote_code=config.trust_remote_code)
        _windows(config, section, structure)
        if section.perplexity:
            load.warn_of_length(skeletons[name], section.perplexity.sequence_length, "eval.perplexity.sequence_length")
    output = Path(config.output_dir) / "eval"
    largest = max(load.weight_bytes(skeleton, config.dtype) for skeleton in skeletons.values())
    data = section.perplexity.dataset.source("").identity() if section.perplexity else None
    return Job(
        stage="eval",
        output=output,
        inputs=models,
        settings={**common.settings(config, section), "perplexity_source": data, "task_files": task_digests},
        config=config,
        work=lambda partial: _evaluate(config, section, models, tasks, device, partial),
        report=lambda: console.result((output / "results.md").read_text().strip()),
        plan=[f"{', '.join(models)}, one at a time", f"memory: weights {largest / 1e9:.2f} GB, logits 1 GB"],
        resumable=True,
    )


def _load_tasks(section: Eval) -> tuple[dict[str, Any], dict[str, str]]:
    if not section.tasks:
        return {}, {}
    from lors_cli.evaluation import zero_shot  # lm-eval takes seconds to import

    directories = [Path(path) if path else None for path in (section.task_dir, section.data_dir)]
    return zero_shot.load_tasks(section.tasks, *directories)


def _directory(config: Config, name: str, earlier: list[str]) -> Path:
    if name == "dense":
        return source.resolve(config.model)
    if name == "pruned":
        return common.pruned_directory(config, "eval", None, earlier)
    if name == "merged":
        return common.previous(config, "merged", "merge", "eval.models", earlier)
    return source.resolve(name, "eval.models")


def _windows(config: Config, section: Eval, directory: Path) -> torch.Tensor | None:
    if section.perplexity is None:
        return None
    tokenizer = load.load_tokenizer(directory, trust_remote_code=config.trust_remote_code)
    text = section.perplexity.dataset.source("eval.perplexity.dataset")
    length, most = section.perplexity.sequence_length, section.perplexity.samples
    return windows.concatenated(text, tokenizer, length, most, at_most=True)


def _evaluate(
    config: Config, section: Eval, models: dict[str, Path], tasks: dict[str, Any], device: torch.device, partial: Path
) -> dict[str, Any]:
    progress = scratch(partial) / PROGRESS
    done: dict[str, Any] = json.loads(progress.read_text()) if progress.is_file() else {}
    for name, directory in models.items():
        found = done.setdefault(name, {})
        if found.get("complete"):
            log.info("eval: %s was measured before the interruption", name)
            continue
        found["sparsity"] = inspect.inspect_model(directory, trust_remote_code=config.trust_remote_code)["sparsity"]
        model = load.load_model(directory, config.dtype, device, trust_remote_code=config.trust_remote_code)
        tokens = _windows(config, section, directory)
        if tokens is not None and "perplexity" not in found:
            found["perplexity"] = {**perplexity(model, tokens), "token_digest": digest.of_value(tokens.tolist())}
            log.info("eval: %s perplexity %.4f", name, found["perplexity"]["value"])
            manifest.write_json(progress, done)
        for task, objects in tasks.items():
            if task not in found.setdefault("asked_tasks", {}):
                found["asked_tasks"][task] = _run_task(config, section, model, directory, objects)
                log.info("eval: %s %s", name, _first(found["asked_tasks"][task]))
                manifest.write_json(progress, done)
        found["complete"] = True
        manifest.write_json(progress, done)
        del model
        gc.collect()
    results = {
        "models": {name: _tidy(found, models[name]) for name, found in done.items()},
        "settings": _settings(config, section, models),
        "versions": manifest.versions(),
    }
    manifest.write_json(partial / "results.json", results)
    (partial / "results.md").write_text(_table(results))
    return {"models": results["models"]}


def _run_task(config: Config, section: Eval, model: Any, directory: Path, objects: list[Any]) -> dict[str, Any]:
    from lors_cli.evaluation import zero_shot

    tokenizer = load.load_tokenizer(directory, trust_remote_code=config.trust_remote_code)
    with console.third_party_output():
        return zero_shot.evaluate(model, tokenizer, objects, limit=section.limit, batch_size=section.batch_size)


def _tidy(found: dict[str, Any], directory: Path) -> dict[str, Any]:
    measured: dict[str, Any] = {key: found[key] for key in ("sparsity", "perplexity") if key in found}
    tasks = {name: metrics for asked in found.get("asked_tasks", {}).values() for name, metrics in asked.items()}
    return {"path": str(directory), **measured, "tasks": tasks}


def _settings(config: Config, section: Eval, models: dict[str, Path]) -> dict[str, Any]:
    """What must be equal for two numbers to be comparable."""
    recorded: dict[str, Any] = {"dtype": config.dtype, "seed": config.seed, "limit": section.limit}
    if config.dtype == "auto":
        kinds = {
            n: load.skeleton(d, trust_remote_code=config.trust_remote_code).config.dtype for n, d in models.items()
        }
        recorded["dtype"] = {name: str(kind).removeprefix("torch.") for name, kind in kinds.items()}
    if section.perplexity:
        recorded["perplexity"] = {
            **section.perplexity.model_dump(mode="json"),
            "windows": "consecutive, of the rows joined by a blank line",
            "bos": False,
        }
    return {**recorded, "tasks": section.tasks, "task_dir": section.task_dir}


def _first(metrics: dict[str, dict[str, Any]]) -> str:
    return "; ".join(f"{task} {_cell(found)}" for task, found in metrics.items())


def _cell(found: dict[str, Any]) -> str:
    """The metric of a task that the table shows, with its standard error."""
    metrics = [k for k, v in found.items() if isinstance(v, float) and "_stderr" not in k and k != "version"]
    name = next((choice for choice in FIRST_CHOICE if choice in metrics), metrics[0] if metrics else None)
    if name is None:
        return "-"
    metric, comma, kind = name.partition(",")
    error = found.get(f"{metric}_stderr{comma}{kind}")
    known = isinstance(error, float) and not math.isnan(error)
    return f"{metric} {found[name]:.4f}" + (f" ± {error:.4f}" if known else "")


def _table(results: dict[str, Any]) -> str:
    models = results["models"]
    tasks = list(dict.fromkeys(task for found in models.values() for task in found["tasks"]))
    asked = results["settings"].get("perplexity")
    header = ["model", "sparsity", *(["perplexity"] if asked else []), *tasks]
    rows = [
        [
            name,
            f"{found['sparsity']:.4f}",
            *([f"{found['perplexity']['value']:.2f}"] if asked else []),
            *(_cell(found["tasks"][task]) for task in tasks),
        ]
        for name, found in models.items()
    ]
    lines = [console.markdown_table(header, rows), ""]
    if asked:
        tokens = next(iter(models.values()))["perplexity"]["tokens"]
        lines.append(
            f"Perplexity: {asked['dataset']['path']}, windows of {asked['sequence_length']} tokens, {tokens} predicted,"
            f" no BOS. dtype: {results['settings']['dtype']}."
        )
    if tasks:
        counts = ", ".join(f"{t} {f['n']} items" for t, f in next(iter(models.values()))["tasks"].items() if f["n"])
        lines.append(f"Tasks: lm-eval {results['versions'].get('lm_eval', '?')}, {counts}.")
    return "\n".join(lines) + "\n"
