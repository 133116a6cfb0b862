"""How an evaluated model was made: from its directory's manifest back to its adapter, its pruned and its dense model.

A manifest counts only if the digest in it is the one that was recorded where it was used, so a model, adapter or
pruned model that was made again since is never taken for the one that was measured.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lors_cli.reporting.runs import LeftOut, Manifests, Run
from lors_cli.run.manifest import Manifest

DENSE, PRUNED, TUNED, OTHER = "dense", "pruned", "tuned", "other"
# Kinds by the names that an evaluation has for the models of a run, where these lie in it, and kinds by stages.
KINDS = {"dense": DENSE, "pruned": PRUNED, "aligned": PRUNED, "tuned": TUNED, "merged": TUNED}
PLACES = {"pruned": "pruned", "aligned": "aligned", "tuned": "adapter", "merged": "merged"}
MADE_BY = {"prune": PRUNED, "align": PRUNED, "train": TUNED, "recover": TUNED, "merge": TUNED}
ORIGINAL, UNMERGED = "the original", "the pruned model"


@dataclass
class Origin:
    """Where a model comes from, as far as its manifests tell; what they do not tell is None and said in `notes`.

    Attributes:
        kind: dense, pruned, tuned or other.
        base: what the dense model at the beginning is called.
        base_digest: its digest.
        directory: of the model, or of the adapter if that was not merged; None if it is gone.
        training_directory: of the adapter, or of the aligned model that this is.
        prune, align, train, merge: the settings of the stages.
        pruned_digest: of the model that the adapter was trained for.
        unpruned: whether that is the dense one, or this is that.
        target: what the adapter is on, unless it was merged into that model: ORIGINAL, or it UNMERGED.
        made: the manifest of `directory`.
        manifests: by the stage that made it.
        notes: what is missing.

    """

    kind: str
    base: str
    base_digest: str | None = None
    directory: Path | None = None
    training_directory: Path | None = None
    prune: dict[str, Any] | None = None
    align: dict[str, Any] | None = None
    train: dict[str, Any] | None = None
    merge: dict[str, Any] | None = None
    pruned_digest: str | None = None
    unpruned: bool = False
    target: str = ""
    made: Manifest | None = None
    manifests: dict[str, Manifest] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def evaluated_digest(run: Run, name: str) -> str | None:
    """The digest of a model at its evaluation."""
    recorded: str | None = run.results["models"][name].get("digest")
    return recorded or run.manifest.inputs.get(name)


def trace(run: Run, name: str, manifests: Manifests) -> Origin | LeftOut:
    """Where the model comes from that a run's evaluation calls `name`; left out if it is another one by now."""
    return _Trace(run, manifests).of(name)


class _Trace:
    def __init__(self, run: Run, manifests: Manifests) -> None:
        self._run, self._manifests = run, manifests

    def of(self, name: str) -> Origin | LeftOut:
        run = self._run
        wanted = evaluated_digest(run, name)
        paths = self._places(run.results["models"][name].get("path"), run.config)
        if name in PLACES:
            paths.insert(0, run.directory / PLACES[name])
        directory, content = self._find(paths, wanted)
        if directory is None and (changed := [path for path in paths if self._manifests.of(path)]):
            reason = "it was made again after it was evaluated, so its numbers are another model's"
            return LeftOut(changed[0], reason, "`lors eval` with --force measures it")
        own = _name(run.config.get("model") or "?")
        origin = Origin(KINDS.get(name, OTHER), own, directory=directory, target=UNMERGED if name == "tuned" else "")
        if content:
            if name not in KINDS:  # it may be of another run
                origin.base = _name(content.config.get("model") or own)
            origin.kind, origin.made = MADE_BY.get(content.stage, origin.kind), content
            origin.target = UNMERGED if content.stage == "train" else ""
            self._take(origin, directory, content)
        else:
            origin.directory = next((path for path in paths if path.is_dir()), None)
            if origin.kind in (PRUNED, TUNED):
                _from_config(origin, name, run.config)
        if origin.base_digest is None and origin.base == own and DENSE in run.results["models"]:
            origin.base_digest = evaluated_digest(run, DENSE)
        if origin.prune is None and origin.align is None:
            used = wanted if origin.kind == PRUNED else origin.pruned_digest
            origin.unpruned |= used is not None and used == origin.base_digest
            if origin.unpruned and origin.kind == PRUNED:
                origin.kind, origin.base_digest = DENSE, origin.base_digest or wanted
        return origin

    def _take(self, origin: Origin, directory: Path | None, content: Manifest) -> None:
        """Take over what a manifest says, and go on to what its directory was made from."""
        stage, settings, config = content.stage, content.settings, content.config
        if stage not in MADE_BY:
            return
        origin.manifests[stage] = content
        if stage == "prune":
            origin.prune = settings
            origin.base_digest = content.inputs.get("model")
            origin.base = _name((config.get("prune") or {}).get("input") or config.get("model") or origin.base)
        elif stage == "align":
            origin.align = settings
            origin.training_directory = directory if origin.kind == PRUNED else origin.training_directory
            self._take_pruned(origin, content)
        elif stage == "train":
            origin.train, origin.training_directory = settings, directory
            self._take_pruned(origin, content)
        else:
            if stage == "merge":
                merged = content.facts.given
                origin.merge = {
                    **settings,
                    **{key: merged.get(key) for key in ("method", "rank", "alpha")},
                }
            if stage == "recover" or _recovers(config):
                origin.target = ORIGINAL
            self._take_adapter(origin, content)

    def _take_adapter(self, origin: Origin, content: Manifest) -> None:
        directory, adapter = self._input(content, "adapter")
        if adapter and adapter.stage in ("train", "recover"):
            self._take(origin, directory, adapter)
            return
        origin.notes.append("the adapter that was merged is gone or was made again, so its training is not known")
        if origin.target == ORIGINAL and content.stage == "merge":  # into another model than it was trained for
            _take_config(origin, content.config)
        else:
            self._take_pruned(origin, content)

    def _take_pruned(self, origin: Origin, content: Manifest) -> None:
        config = content.config
        origin.pruned_digest = origin.pruned_digest or content.inputs.get("pruned")
        directory, pruned = self._input(content, "pruned")
        if pruned and pruned.stage in ("prune", "align"):
            self._take(origin, directory, pruned)
        elif _take_config(origin, config):
            origin.notes.append(
                "the pruned model that it was made from is gone or was made again; how, is told by the config of"
                f" `lors {content.stage}`"
            )
        elif origin.unpruned:
            origin.base_digest = content.inputs.get("pruned")

    def _input(self, content: Manifest, name: str) -> tuple[Path | None, Manifest | None]:
        paths = self._places(content.input_paths.get(name), content.config)
        return self._find([self._run.directory / name, *paths], content.inputs.get(name))

    def _places(self, recorded: str | None, config: dict[str, Any]) -> list[Path]:
        """Where a recorded path may be now: as it is, or where it has moved to together with the run directory."""
        if not recorded:
            return []
        output = config.get("output_dir")
        moved = [self._run.directory / os.path.relpath(recorded, output)] if output else []
        return [Path(recorded), *(Path(os.path.normpath(path)) for path in moved)]

    def _find(self, paths: list[Path], wanted: str | None) -> tuple[Path | None, Manifest | None]:
        """The first of the directories whose manifest has the wanted digest; the others tell nothing."""
        for path in paths:
            content = self._manifests.of(path)
            if content and wanted and content.digest == wanted:
                return path, content
        return None, None


def _from_config(origin: Origin, name: str, config: dict[str, Any]) -> None:
    """Believe the config of the evaluation, where there is no manifest any more."""
    _take_config(origin, config)
    if name == "pruned":
        origin.align = None
    train = config.get("train") or {}
    if origin.kind == TUNED and train:
        origin.merge = {**(config.get("merge") or {}), **{key: train.get(key) for key in ("method", "rank")}}
        if name == "merged" and _recovers(config):
            origin.target = ORIGINAL
    if origin.prune or origin.merge:
        state = "has no manifest" if origin.directory else "is gone"
        origin.notes.append(f"its directory {state}; how it was made is told by the config of its evaluation")


def _take_config(origin: Origin, config: dict[str, Any]) -> bool:
    """Take from a config how the pruned model was made, if it was by that config and not elsewhere."""
    inputs = [found for stage in ("align", "train") if (found := (config.get(stage) or {}).get("input"))]
    origin.unpruned = bool(inputs) and inputs[0] == config.get("model")
    if inputs or not config.get("prune"):
        return False
    origin.prune, origin.align = config["prune"], origin.align or config.get("align")
    return True


def _recovers(config: dict[str, Any]) -> bool:
    """Whether the merge of a config takes the recovered adapter and the original."""
    merge = config.get("merge") or {}
    return config.get("recover") is not None and not merge.get("input") and not merge.get("adapter")


def _name(model: str) -> str:
    """What a table calls a model: its hub id, or the last part of its path."""
    plain = model.rstrip("/")
    parts = plain.split("/")
    local = plain.startswith(("/", ".", "~")) or len(parts) > 2 or plain.endswith(".gguf")
    return parts[-1] if local else plain
