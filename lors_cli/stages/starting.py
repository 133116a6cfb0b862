"""The adapter that a training starts from: whether it fits, and where the training of a finished one goes on."""

import json
import logging
import os
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from lors_cli import adapters
from lors_cli.adapters import fit
from lors_cli.artifacts import adapter_file
from lors_cli.artifacts.adapter_file import AdapterFile
from lors_cli.config.schema import Config
from lors_cli.config.train import Train, samples_per_step
from lors_cli.errors import Problem, RequestError, request_error
from lors_cli.models import linears
from lors_cli.run import belongs, manifest, request
from lors_cli.run.graph import Graph, Input
from lors_cli.run.layout import STAGES
from lors_cli.run.manifest import Manifest
from lors_cli.training import checkpoint
from lors_cli.training.beginning import Beginning

log = logging.getLogger(__name__)

# Whose adapters a method can start from, beside its own: those of which it applies the same lora_A and lora_B.
ALIKE = {"lors": ("lora", "sqft"), "sqft": ("lora", "lors")}
# Of a training's settings, what its samples and their order depend on.
OF_THE_DATA = ("seed", "dataset", "sequence_length", "packing", "overlong", "append_eos", "ignore_fields", "data")


def beginning(
    config: Config, section: Train, graph: Graph, skeleton: PreTrainedModel, settings: dict[str, Any]
) -> Beginning | None:
    """The adapter that `section` starts from; None if it starts by `init`.

    Args:
        config: of the run.
        section: `train` of it.
        graph: its inputs.
        skeleton: the model without its weights.
        settings: those of the training that determine its result.

    Raises:
        RequestError: it is of another method, rank or alpha, or another model's, or cannot be trained further.

    """
    if section.starts_from is None:
        return None
    name, _ = section.starts_from
    key, model = f"{section.key}.{name}", graph.input(section.key, "pruned")
    path = graph.input(section.key, name).path
    if os.path.abspath(path) == os.path.abspath(STAGES[section.key].output(config.output_dir)):
        remedy = f"set another output_dir, and {section.key}.input={model.path}"
        raise request_error(key, "an adapter outside of output_dir, where the new one goes", path, remedy)
    content = adapter_file.load(path, key)
    _check_kind(section, content, key, path)
    if model.maker is None:
        check_model(key, path, content, model, skeleton)
    if name == "adapter":
        return Beginning(key, path)
    made = manifest.read(path)
    if made is None or made.stage != "train":
        expected = "the finished adapter/ of `lors train`, whose lors.json says what it has seen"
        remedy = f"name it as {section.key}.adapter, to start a new training from it"
        raise request_error(key, expected, path, remedy)
    goes_on = section.resume_data == "continue"
    if goes_on:
        _check_data(made, section, settings)
    facts = made.facts.given
    before = facts.get("further") or {"steps": 0, "tokens": 0, "samples": 0}
    had = made.settings
    per_step = samples_per_step(had.get("batch_size"), had.get("batch_tokens"), had["sequence_length"])
    samples = before["samples"] + facts["steps"] * per_step
    saved = facts.get("optimizer_step") if (path / checkpoint.OPTIMIZER).is_file() else None
    return Beginning(
        key,
        path,
        before["steps"] + facts["steps"],
        before["tokens"] + facts["tokens"],
        samples if goes_on else 0,
        saved,
    )


def check_model(key: str, path: Path, content: AdapterFile, model: Input, skeleton: PreTrainedModel) -> None:
    """Check that the adapter fits the model, and, unless it is a LoRA adapter to start from, that it was made on it.

    Raises:
        RequestError: it does not, or was not.

    """
    if content.method != "lora" or not key.endswith(".adapter"):
        belongs.check(path, content, model.path, skeleton, key)
        return
    # of the dense original, or of the pruned model: either is a start
    kind = adapters.METHODS[content.method].adapter
    sizes = linears.shapes(skeleton, asked=content.modules)
    if problems := fit.misfits(kind, lambda _: content.rank, content.modules, sizes):
        remedy = "name an adapter of a model with these shapes"
        raise request_error(key, f"an adapter that fits {model.path}", f"{path}: {problems[0]}", remedy)
    log.info("%s: made on %s; its values are the start, whatever that model's weights are", key, content.model or "?")


def _check_kind(section: Train, content: AdapterFile, key: str, path: Path) -> None:
    """Refuse another method, rank or alpha, each by its name."""
    usable = (section.method, *(ALIKE.get(section.method, ()) if key.endswith(".adapter") else ()))
    if content.method not in usable:
        known = content.method in adapters.METHODS
        remedy = f"write {section.key}.method: {content.method}, or name another adapter" if known else "name another"
        raise request_error(key, f"an adapter of {' or '.join(usable)}", f"{path}, of {content.method}", remedy)
    asked: dict[str, Any] = {"quantization_aware": bool(section.option("quantization_aware"))}
    if adapters.METHODS[section.method].has_rank:
        asked |= {"rank": section.rank, "alpha": section.alpha}
    for name, value in asked.items():
        if (has := getattr(content, name)) != value:
            remedy = f"write {section.key}.{name}: {json.dumps(has)}, or name another adapter"
            raise request_error(key, f"an adapter of {section.key}.{name} {value}", f"{path}, of {has}", remedy)


def _check_data(made: Manifest, section: Train, settings: dict[str, Any]) -> None:
    """Refuse other data, or another order of them, in which the samples that were seen cannot be told from the others.

    Raises:
        RequestError: they are others.

    """
    now = json.loads(json.dumps(settings))
    recorded = request.completed(request.inherited(made.request, made.config), now, section)

    def of_the_data(known: dict[str, Any]) -> dict[str, Any]:
        kept = {name: known.get(name) for name in OF_THE_DATA}
        data = {name: one for name, one in (kept.pop("data") or {}).items() if "eval_dataset" not in name}
        return manifest.flat({**kept, "data": data})

    before, asked = of_the_data(recorded.settings), of_the_data(now)
    remedy = f"leave it as it was, or set {section.key}.resume_data=restart to begin at the first sample"
    if others := [name for name in {**before, **asked} if before.get(name) != asked.get(name)]:
        raise RequestError(
            *(
                Problem(
                    name if name == "seed" else f"{section.key}.{name}",
                    f"{before.get(name)!r}, with which the samples of {section.key}.resume_from were taken",
                    f"{asked.get(name)!r}",
                    remedy,
                )
                for name in others
            )
        )
