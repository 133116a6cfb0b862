"""Run directories of LoRAM: an adapter that was trained on a smaller model, evaluated there and on the original."""

from pathlib import Path
from typing import Any

from lors_cli.artifacts import digest
from tests.reporting.synthetic import LOSSES, evaluate, manifest, write_json

MODEL = "/models/llama-13b"
# As the paper finds them, from the best to the worst.
ORDER = ("merged", "dense", "tuned", "aligned", "pruned")
PERPLEXITIES = {name: [loss + 100 * place for loss in LOSSES["dense"]] for place, name in enumerate(ORDER)}


def make_loram(directory: Path, *, ratio: float = 0.65, align: bool = True, seed: int = 0) -> Path:
    """Write a whole run directory.

    Args:
        directory: of the run.
        ratio: of what was pruned.
        align: whether the pruned model was aligned.
        seed: of all stages.

    """
    original = Path(MODEL)
    config = {
        "model": MODEL,
        "output_dir": str(directory),
        "device": "cpu",
        "prune": {"method": "structured_random", "ratio": ratio, "sparsity": None, "input": None},
        "align": {"method": "full", "input": None} if align else None,
        "train": {"method": "lora", "rank": 8, "input": None},
        "recover": {"input": None, "adapter": None},
        "merge": {"input": None, "adapter": None},
    }
    digests = {original: digest.of_value(MODEL)}

    def make(name: str, stage: str, settings: dict[str, Any], inputs: dict[str, Path], **facts: Any) -> Path:
        content = manifest(
            stage,
            settings,
            {key: digests[path] for key, path in inputs.items()},
            input_paths={key: str(path) for key, path in inputs.items()},
            config=config,
            **facts,
        )
        write_json(directory / name / "lors.json", content)
        digests[directory / name] = content["digest"]
        return directory / name

    settings = {"seed": seed, "method": "structured_random", "sparsity": None, "ratio": ratio}
    smaller = {"parameters": {"before": 13_000_000, "after": 6_000_000}, "reduction": 13 / 6}
    pruned = trained = make("pruned", "prune", settings, {"model": original}, pattern="dense", **smaller)
    if align:
        settings = {"seed": seed, "method": "full", "max_steps": 40}
        trained = make("aligned", "align", settings, {"pruned": pruned}, tokens=7_000, pattern="dense")
    settings = {"seed": seed, "method": "lora", "rank": 8, "init": None}
    counts = {"tokens": 1_000_000, "trainable_parameters": 6_000}
    adapter = make("adapter", "train", settings, {"pruned": trained}, **counts)
    recovered = make("recovered", "recover", {}, {"model": original, "pruned": trained, "adapter": adapter})
    settings, facts = {"dense": True, "apply_mask": False}, {"method": "lora", "rank": 8, "pattern": "dense"}
    merged = make("merged", "merge", settings, {"pruned": original, "adapter": recovered}, **facts)
    places = {"dense": original, "pruned": pruned, "aligned": trained, "tuned": adapter, "merged": merged}
    models = {name: (path, digests[path], 0.0) for name, path in places.items() if align or name != "aligned"}
    evaluate(directory, models, config, answers={}, losses=PERPLEXITIES)
    return directory


def make_sibling(directory: Path, model: str = "/models/llama-7b") -> Path:
    """Write a run directory of LoRA on a model that was not pruned."""
    digests = {name: digest.of_value(f"{name} of {model}") for name in ("adapter", "merged")}
    digests["dense"] = digest.of_value(model)
    config = {"model": model, "output_dir": str(directory), "train": {"method": "lora", "rank": 8, "input": model}}
    settings: dict[str, Any] = {"seed": 0, "method": "lora", "rank": 8}
    common: dict[str, Any] = {"input_paths": {"pruned": model, "adapter": str(directory / "adapter")}, "config": config}
    adapter = manifest("train", settings, {"pruned": digests["dense"]}, tokens=1_000_000, **common)
    inputs = {"pruned": digests["dense"], "adapter": adapter["digest"]}
    merged = manifest("merge", {"dense": True, "apply_mask": False}, inputs, method="lora", rank=8, **common)
    write_json(directory / "adapter/lors.json", adapter)
    write_json(directory / "merged/lors.json", merged)
    models = {
        "dense": (Path(model), digests["dense"], 0.0),
        "pruned": (
            Path(model),
            digests["dense"],
            0.0,
        ),  # what train takes; `lors eval` measures it where it is asked to
        "merged": (directory / "merged", str(merged["digest"]), 0.0),
    }
    losses = {"dense": LOSSES["dense"], "pruned": LOSSES["dense"], "merged": [loss - 50 for loss in LOSSES["dense"]]}
    evaluate(directory, models, config, answers={}, losses=losses)
    return directory
