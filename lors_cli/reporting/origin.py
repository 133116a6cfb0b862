"""How an evaluated model was made and what that cost: as manifests tell, or where they are gone, a config."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from lors_cli.adapters import MASKED
from lors_cli.artifacts.model_files import weight_files
from lors_cli.errors import LorsError
from lors_cli.reporting.runs import LeftOut, Manifests, Run
from lors_cli.run.facts import Aligned, Merged, Pruned, Recovered, Trained
from lors_cli.run.layout import EVALUATED, STAGES, merges_recovered
from lors_cli.run.lineage import Lineage, Step
from lors_cli.run.manifest import Manifest

DENSE, PRUNED, TUNED, OTHER = "dense", "pruned", "tuned", "other"
# Kinds by the stages that make them, and by the names that an evaluation has for the models of a run.
MADE_BY = {"prune": PRUNED, "align": PRUNED, "quantize": PRUNED, "train": TUNED, "recover": TUNED, "merge": TUNED}
KINDS = {"dense": DENSE, **{name: MADE_BY[stage] for name, stage in EVALUATED.items()}}
ORIGINAL, UNMERGED = "the original", "the pruned model"


@dataclass
class Origin:
    """Where a model comes from. What is not known is None, and said in `notes`.

    Attributes:
        kind: dense, pruned, tuned or other.
        dense: what the dense model at the beginning is called.
        dense_digest: its digest.
        directory: of the model, or of the adapter if that was not merged; None if it is gone.
        training_directory: of the adapter, or of the aligned model that this is.
        prune, align, quantize, train, merge: the settings of the stages.
        pruned_digest: of the model that the adapter was trained for.
        unpruned: whether that model is the dense one, or this model is.
        target: the model that the adapter is on, unless it was merged into the one that it was trained for: ORIGINAL
            if it was recovered, UNMERGED if it is an adapter still.
        made: the manifest of `directory`.
        manifests: by the stage that made it.
        notes: what is missing.

    """

    kind: str
    dense: str
    dense_digest: str | None = None
    directory: Path | None = None
    training_directory: Path | None = None
    prune: dict[str, Any] | None = None
    align: dict[str, Any] | None = None
    quantize: dict[str, Any] | None = None
    train: dict[str, Any] | None = None
    merge: dict[str, Any] | None = None
    pruned_digest: str | None = None
    unpruned: bool = False
    target: str = ""
    made: Manifest | None = None
    manifests: dict[str, Manifest] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass
class Cost:
    """What a model took; None where it is not known.

    Attributes:
        tokens: seen in training.
        trainable: parameters of the adapter.
        parameters: of the model.
        embeddings: whether `parameters` counts everything, or only the linears of the blocks.
        seconds: of training.
        peak_bytes: of memory, in training.
        on_gpu: whether that is the GPU's.
        size_bytes: of the model directory.
        reduction: parameters of the original for each one of the model that was trained, if that is smaller.
        model_parameters: of a model that structured pruning made smaller.

    """

    tokens: int | None = None
    trainable: int | None = None
    parameters: int | None = None
    embeddings: bool = True
    seconds: float | None = None
    peak_bytes: int | None = None
    on_gpu: bool = False
    size_bytes: int | None = None
    reduction: float | None = None
    model_parameters: int | None = None


def evaluated_digest(run: Run, name: str) -> str | None:
    """The digest of a model at its evaluation."""
    recorded: str | None = run.results["models"][name].get("digest")
    return recorded or run.manifest.inputs.get(name)


def trace(run: Run, name: str, manifests: Manifests) -> Origin | LeftOut:
    """Where the model comes from that a run's evaluation calls `name`; left out if it is another one by now."""
    lineage, digest = Lineage(manifests.of, run.directory), evaluated_digest(run, name)
    places = lineage.places(run.results["models"][name].get("path"), run.config)
    if name in EVALUATED:
        places.insert(0, STAGES[EVALUATED[name]].output(run.directory))
    step = lineage.find(places, digest)
    if step is None and (changed := [place for place in places if manifests.of(place)]):
        reason = "it was made again after it was evaluated, so its numbers are another model's"
        return LeftOut(changed[0], reason, "`lors eval` with --force measures it")
    own = _name(run.config.get("model") or "?")
    origin = Origin(KINDS.get(name, OTHER), own, target=UNMERGED if name == "tuned" else "")
    if step:
        made = origin.made = step.made
        if name not in KINDS:  # it may be of another run
            origin.dense = _name(made.config.get("model") or own)
        origin.directory, origin.kind = step.directory, MADE_BY.get(made.stage, origin.kind)
        origin.target = UNMERGED if made.stage == "train" else ""
        if made.stage in MADE_BY:
            _follow(origin, step, lineage)
    else:
        origin.directory = next((place for place in places if place.is_dir()), None)
        if origin.kind in (PRUNED, TUNED):
            _believe_config(origin, name, run, lineage)
    if origin.dense_digest is None and origin.dense == own and DENSE in run.results["models"]:
        origin.dense_digest = evaluated_digest(run, DENSE)
    if origin.prune is None and origin.align is None and origin.quantize is None:
        used = digest if origin.kind == PRUNED else origin.pruned_digest
        origin.unpruned |= used is not None and used == origin.dense_digest
        if origin.unpruned and origin.kind == PRUNED:
            origin.kind, origin.dense_digest = DENSE, origin.dense_digest or digest
    return origin


def _follow(origin: Origin, last: Step, lineage: Lineage) -> None:
    """Take over what the manifests say from this step back to the pruning, or to where one is missing."""
    for step in lineage.back(last):
        _take(origin, step)
        last = step
    made = last.made
    if made.stage in ("merge", "recover"):
        origin.notes.append("the adapter that was merged is gone or was made again, so its training is not known")
        if made.stage == "merge" and origin.target == ORIGINAL:  # into another model than it was trained for
            _take_config(origin, made.config)
            return
        origin.pruned_digest = origin.pruned_digest or made.inputs.get("pruned")
        if (pruned := lineage.input(made, "pruned")) and pruned.made.stage in ("prune", "align", "quantize"):
            _follow(origin, pruned, lineage)
            return
    if made.stage == "quantize" and not made.config.get("prune"):
        origin.unpruned, origin.dense_digest = True, made.inputs.get("pruned")
    elif made.stage != "prune":
        if _take_config(origin, made.config):
            origin.notes.append(
                "the pruned model that it was made from is gone or was made again; how, is told by the config of"
                f" `lors {made.stage}`"
            )
        elif origin.unpruned:
            origin.dense_digest = made.inputs.get("pruned")


def _take(origin: Origin, step: Step) -> None:
    """Take over what the manifest of one step says."""
    made = step.made
    origin.manifests[made.stage] = made
    if made.stage == "prune":
        origin.prune, origin.dense_digest = made.settings, made.inputs.get("model")
        origin.dense = _name((made.config.get("prune") or {}).get("input") or made.config.get("model") or origin.dense)
    elif made.stage == "align":
        origin.align = made.settings
        if origin.kind == PRUNED:
            origin.training_directory = step.directory
    elif made.stage == "quantize":
        origin.quantize = made.settings
    elif made.stage == "train":
        origin.train, origin.training_directory = made.settings, step.directory
    elif made.stage == "merge":
        facts = made.facts.given
        origin.merge = {**made.settings, **{key: facts.get(key) for key in ("method", "rank", "alpha")}}
    if made.stage in ("train", "align"):
        origin.pruned_digest = origin.pruned_digest or made.inputs.get("pruned")
    if made.stage == "recover" or (made.stage == "merge" and merges_recovered(made.config)):
        origin.target = ORIGINAL


def _believe_config(origin: Origin, name: str, run: Run, lineage: Lineage) -> None:
    """Take from the config of an evaluation how its model was made, where there is no manifest any more.

    A sweep drops merged models. What was merged is beside them, unless it was made again after the evaluation.
    """
    config = run.config
    if name == "merged":
        directory = STAGES["recover" if merges_recovered(config) else "train"].output(run.directory)
        adapter = lineage.read(directory)
        if adapter and adapter.created <= run.manifest.created:
            _follow(origin, Step(directory, adapter), lineage)
    if not origin.manifests:
        _take_config(origin, config)
    if name == "pruned":
        origin.align = None
    if name in ("pruned", "aligned"):
        origin.quantize = None
    train = config.get("train") or {}
    if origin.kind == TUNED and train:
        origin.merge = {**(config.get("merge") or {}), **{key: train.get(key) for key in ("method", "rank")}}
        if name == "merged" and merges_recovered(config):
            origin.target = ORIGINAL
            if config["recover"].get("mask") == "kept":
                origin.merge["method"] = MASKED
    if origin.prune or origin.merge:
        state = "has no manifest" if origin.directory else "is gone"
        told = "the adapter beside it and the config" if origin.manifests else "the config"
        origin.notes.append(f"its directory {state}; how it was made is told by {told} of its evaluation")


def _take_config(origin: Origin, config: dict[str, Any]) -> bool:
    """Take from a config how the pruned model was made, if it was by that config and not elsewhere."""
    inputs = [given for stage in ("align", "quantize", "train") if (given := (config.get(stage) or {}).get("input"))]
    origin.unpruned = bool(inputs) and inputs[0] == config.get("model")
    if inputs or not config.get("prune"):
        return False
    origin.prune, origin.align = config["prune"], origin.align or config.get("align")
    origin.quantize = origin.quantize or config.get("quantize")
    return True


def _name(model: str) -> str:
    """What a table calls a model: its hub id, or the last part of its path."""
    plain = model.rstrip("/")
    parts = plain.split("/")
    local = plain.startswith(("/", ".", "~")) or len(parts) > 2 or plain.endswith(".gguf")
    return parts[-1] if local else plain


def costs(origin: Origin) -> Cost:
    """What a model took, as its manifests and files tell."""
    cost = Cost()
    training = origin.manifests.get("train" if origin.kind == TUNED else "align")
    if training and isinstance(training.facts, Trained):
        cost = Cost(training.facts.tokens, training.facts.trainable_parameters, seconds=training.seconds)
        cost.on_gpu = "gpu_bytes" in training.peak_memory and training.config.get("device") != "cpu"
        cost.peak_bytes = training.peak_memory.get("gpu_bytes" if cost.on_gpu else "host_bytes")
    smaller = [made.facts for stage in ("prune", "align") if (made := origin.manifests.get(stage))]
    reductions = (facts.reduction for facts in smaller if isinstance(facts, Pruned | Aligned))
    cost.reduction = next((reduction for reduction in reductions if reduction is not None), None)
    cost.model_parameters = None if origin.target == ORIGINAL else _trained(origin)
    directory = None if origin.target == UNMERGED else origin.directory  # which holds the adapter alone
    if directory and directory.is_dir():
        cost.size_bytes = sum(path.stat().st_size for path in directory.iterdir() if path.is_file())
    if cost.trainable:
        counted = _trained(origin) or (_parameters(directory) if directory else None)
        cost.parameters, cost.embeddings = counted or _measured(origin), counted is not None
    return cost


def _trained(origin: Origin) -> int | None:
    """The parameters of a smaller model that was trained; None of models that keep their size."""
    facts = origin.manifests["prune"].facts if "prune" in origin.manifests else None
    return facts.parameters["after"] if isinstance(facts, Pruned) and facts.parameters else None


def _measured(origin: Origin) -> int | None:
    """The parameters that a merge or a recovery counted."""
    facts = origin.made and origin.made.facts
    return facts.parameters if isinstance(facts, Merged | Recovered) else None


def _parameters(directory: Path) -> int | None:
    """The parameters of a model by the headers of its files; None if they cannot be read."""
    total = 0
    try:
        for path in weight_files(directory):
            with safe_open(path, framework="numpy") as file:
                total += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    except (LorsError, OSError, SafetensorError):
        return None
    return total or None
