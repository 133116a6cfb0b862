"""Run directories as the stages leave them, made in a moment: manifests, results and items, no weights."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lors_cli.artifacts import digest
from lors_cli.evaluation import items

VERSIONS = {"lors_cli": "0.1.0", "python": "3.11.7", "torch": "2.13.0", "lm_eval": "0.4.13"}
HARDWARE = {"machine": "x86_64", "cpu_threads": 2}
TOKENS = 2047  # predicted ones of a window
ANSWERS: dict[str, Any] = {
    "dense": [1, 1, 1, 1, 1, 1, 0, 1],
    "pruned": [1, 0, 0, 1, 0, 0, 0, 0],
    "merged": [1, 1, 0, 1, 1, 0, 0, 0],
}
LOSSES: dict[str, Sequence[float]] = {
    "dense": [4000.0, 4100.0, 4200.0],
    "pruned": [6000.0, 6100.0, 6200.0],
    "merged": [4500.0, 4700.0, 4600.0],
}


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def edit_json(path: Path, **changes: Any) -> None:
    """Set keys, given with __ between those of nested dictionaries, of a JSON file."""
    content = json.loads(path.read_text())
    for key, value in changes.items():
        *parents, last = key.split("__")
        target = content
        for parent in parents:
            target = target[parent]
        target[last] = value
    path.write_text(json.dumps(content))


def manifest(stage: str, settings: dict[str, Any], inputs: dict[str, str], **facts: Any) -> dict[str, Any]:
    """The manifest of a stage; its digest follows from what it was made of."""
    return {
        "stage": stage,
        "created": "2026-01-02T03:04:05+00:00",
        "command": f"lors {stage} config.yaml",
        "request": {"settings": settings, "inputs": inputs},
        "digest": digest.of_value([stage, settings, inputs]),
        **facts,
        "versions": VERSIONS,
        "hardware": HARDWARE,
        "seconds": 61.0,
        "peak_memory": {"host_bytes": 2 * 10**9},
    }


def resign(evaluation: Path) -> None:
    """Give an evaluation that was edited on purpose the digest that it has."""
    edit_json(evaluation / "lors.json", digest=digest.of_directory(evaluation))


def make_run(
    directory: Path,
    *,
    model: str = "/models/llama-7b",
    prune: dict[str, Any] | None = None,
    train: dict[str, Any] | None = None,
    merge: dict[str, Any] | None = None,
    answers: dict[str, Any] | None = None,
    losses: Mapping[str, Sequence[float]] | None = None,
    models: Sequence[str] = ("dense", "pruned", "merged"),
    entry: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
    keep_items: bool = True,
    **train_facts: Any,
) -> Path:
    """Write a whole run directory.

    Args:
        directory: of the run.
        model: the dense one.
        prune: changes to the settings of the stage; likewise `train` and `merge`.
        answers: for each model the right and wrong answers to the task arc_easy, or a dictionary of tasks.
        losses: for each model the summed losses of windows; perplexity is not measured without.
        models: those that are evaluated.
        entry: changes to the results of each task.
        settings: changes to those of the results.
        keep_items: whether results by item are written.
        train_facts: changes to the manifest of the adapter.

    """
    answers = ANSWERS if answers is None else answers
    losses = LOSSES if losses is None else losses
    config = {
        "model": model,
        "output_dir": str(directory),
        "seed": 0,
        "device": "cpu",
        "prune": {"method": "wanda", "sparsity": "2:4", "input": None},
        "train": {"method": "lors", "rank": 16, "init": None, "input": None},
        "merge": {},
    }
    origin = {"config": config}
    pruned = manifest(
        "prune",
        {"seed": 0, "method": "wanda", "sparsity": "2:4", "calibration_tokens": "cafe", **(prune or {})},
        {"model": digest.of_value(model)},
        sparsity=0.5,
        pattern="2:4",
        modules={f"model.layers.{b}.mlp.up_proj": {"sparsity": 0.5, "pattern": "2:4"} for b in range(2)},
        input_paths={"model": model},
        **origin,
    )
    adapter = manifest(
        "train",
        {"seed": 0, "method": "lors", "rank": 16, "init": None, "learning_rate": 2e-5, **(train or {})},
        {"pruned": pruned["digest"]},
        **{"tokens": 1_000_000, "trainable_parameters": 5_000, "init": "gradient", **train_facts},
        input_paths={"pruned": str(directory / "pruned")},
        **origin,
    )
    settings_of_merge = {"dense": False, "apply_mask": False, **(merge or {})}
    merged = manifest(
        "merge",
        settings_of_merge,
        {"pruned": pruned["digest"], "adapter": adapter["digest"]},
        method=adapter["request"]["settings"]["method"],
        rank=adapter["request"]["settings"]["rank"],
        sparsity=0.0 if settings_of_merge["dense"] else 0.5,
        pattern="dense" if settings_of_merge["dense"] else "2:4",
        parameters=1_000_000,
        modules=pruned["modules"],
        input_paths={"pruned": str(directory / "pruned"), "adapter": str(directory / "adapter")},
        **origin,
    )
    for name, content in (("pruned", pruned), ("adapter", adapter), ("merged", merged)):
        write_json(directory / name / "lors.json", content)
    log = [{"step": step, "tokens": 100 * step, "loss": 3 - 0.1 * step} for step in range(1, 5)]
    log.append({"step": 4, "tokens": 400, "eval_loss": 2.7})
    (directory / "adapter/training_log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    places = {"dense": Path(model), "pruned": directory / "pruned", "merged": directory / "merged"}
    digests = {"dense": digest.of_value(model), "pruned": pruned["digest"], "merged": merged["digest"]}
    evaluated = {name: (places[name], digests[name], 0.0 if name == "dense" else 0.5) for name in models}
    evaluate(
        directory,
        evaluated,
        config,
        answers=answers,
        losses=losses,
        entry=entry,
        settings=settings,
        keep_items=keep_items,
    )
    return directory


def evaluate(
    directory: Path,
    models: dict[str, tuple[Path, str, float]],
    config: dict[str, Any],
    *,
    answers: dict[str, Any],
    losses: Mapping[str, Sequence[float]],
    entry: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
    keep_items: bool = True,
) -> None:
    """Write an evaluation into a run directory: of models with their paths, digests and sparsities; else as above."""
    evaluation = directory / "eval"
    results_of: dict[str, Any] = {}
    for name, (path, digest_of_model, sparsity) in models.items():
        results_of[name] = {"path": str(path), "digest": digest_of_model, "sparsity": sparsity}
        if keep_items:
            results_of[name]["items"] = f"items/{name}"
        given: Any = answers.get(name, {})
        tasks = given if isinstance(given, dict) else {"arc_easy": given}
        results_of[name]["tasks"] = {
            task: {**_entry(evaluation / "items" / name if keep_items else None, task, right), **(entry or {})}
            for task, right in tasks.items()
        }
        if name in losses:
            results_of[name]["perplexity"] = _perplexity(
                evaluation / "items" / name if keep_items else None, list(losses[name])
            )
    results = {
        "models": results_of,
        "settings": {
            "dtype": "float32",
            "seed": 0,
            "limit": None,
            "perplexity": {"dataset": {"path": "data/wikitext2.jsonl"}, "sequence_length": TOKENS + 1, "bos": False},
            "backend": "transformers",
            **(settings or {}),
        },
        "versions": VERSIONS,
    }
    write_json(evaluation / "results.json", results)
    inputs = {name: results_of[name]["digest"] for name in models}
    content = manifest("eval", {"models": list(models)}, inputs, config=config)
    write_json(evaluation / "lors.json", {**content, "digest": digest.of_directory(evaluation)})


def _entry(directory: Path | None, task: str, right: Sequence[float]) -> dict[str, Any]:
    if directory:
        rows = [{"doc_id": n, "doc": f"{n:x}", "prompt": f"p{n:x}", "acc": float(r)} for n, r in enumerate(right)]
        items.write(directory / f"{task}.jsonl.gz", rows)
    mean = sum(right) / len(right)
    error = math.sqrt(mean * (1 - mean) / (len(right) - 1))
    return {"acc": mean, "acc_stderr": error, "n": len(right), "shots": 0, "version": 1.0, "metric": "acc"}


def _perplexity(directory: Path | None, losses: list[float]) -> dict[str, Any]:
    if directory:
        rows = [{"window": n, "loss": loss, "tokens": TOKENS} for n, loss in enumerate(losses)]
        items.write(directory / "perplexity.jsonl.gz", rows)
    value = math.exp(sum(losses) / len(losses) / TOKENS)
    return {"value": value, "tokens": len(losses) * TOKENS, "token_digest": "feed", "stderr": 0.01 * value}
