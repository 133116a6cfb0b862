"""How an evaluated model was made: from its directory's manifest back to its adapter, its pruned and its dense model.

A manifest counts only if the digest in it is the one that was recorded where it was used, so a model, adapter or
pruned model that was made again since is never taken for the one that was measured.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lors_cli.reporting.runs import LeftOut, Manifests, Run

DENSE, PRUNED, TUNED, OTHER = "dense", "pruned", "tuned", "other"
Manifest = dict[str, Any]


@dataclass
class Origin:
    """Where a model comes from, as far as its manifests tell; what they do not tell is None and said in `notes`.

    Attributes:
        kind: dense, pruned, tuned or other.
        base: what the dense model at the beginning is called.
        base_digest: its digest.
        directory: of the model; None if it is gone.
        adapter_directory: of the adapter that was merged.
        prune, train, merge: the settings of the stages.
        pruned_digest: of the pruned model that a tuned one was merged into.
        manifests: by the stage that made it.
        notes: what is missing.

    """

    kind: str
    base: str
    base_digest: str | None = None
    directory: Path | None = None
    adapter_directory: Path | None = None
    prune: dict[str, Any] | None = None
    train: dict[str, Any] | None = None
    merge: dict[str, Any] | None = None
    pruned_digest: str | None = None
    manifests: dict[str, Manifest] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def evaluated_digest(run: Run, name: str) -> str | None:
    """The digest of a model at its evaluation."""
    recorded = run.results["models"][name].get("digest")
    found: str | None = recorded or run.manifest["request"].get("inputs", {}).get(name)
    return found


def trace(run: Run, name: str, manifests: Manifests) -> Origin | LeftOut:
    """Where the model comes from that a run's evaluation calls `name`; left out if it is another one by now."""
    return _Trace(run, manifests).of(name)


class _Trace:
    def __init__(self, run: Run, manifests: Manifests) -> None:
        self._run, self._manifests = run, manifests

    def of(self, name: str) -> Origin | LeftOut:
        run = self._run
        wanted = evaluated_digest(run, name)
        kind = {"dense": DENSE, "pruned": PRUNED, "merged": TUNED}.get(name, OTHER)
        paths = self._places(run.results["models"][name].get("path"), run.config)
        if name in ("pruned", "merged"):
            paths.insert(0, run.directory / name)
        directory, content = self._find(paths, wanted)
        if directory is None and (changed := [path for path in paths if self._manifests.of(path)]):
            reason = "it was made again after it was evaluated, so its numbers are another model's"
            return LeftOut(changed[0], reason, "`lors eval` with --force measures it")
        origin = Origin(kind, _name(run.config.get("model") or "?"), directory=directory)
        if content:
            self._follow(origin, content)
        else:
            origin.directory = next((path for path in paths if path.is_dir()), None)
            if kind in (PRUNED, TUNED):
                self._from_config(origin, run.config)
        if origin.base_digest is None and DENSE in run.results["models"]:
            origin.base_digest = evaluated_digest(run, DENSE)
        return origin

    def _follow(self, origin: Origin, content: Manifest) -> None:
        """Take over what a model's manifest says, and go on to what it was made from."""
        stage = content.get("stage")
        if stage == "prune":
            origin.kind = PRUNED
            self._take_prune(origin, content)
        elif stage == "merge":
            origin.kind = TUNED
            self._take_merge(origin, content)

    def _take_prune(self, origin: Origin, content: Manifest) -> None:
        request, config = content["request"], content.get("config") or {}
        origin.prune = request["settings"]
        origin.manifests["prune"] = content
        origin.base_digest = request["inputs"].get("model")
        origin.base = _name((config.get("prune") or {}).get("input") or config.get("model") or origin.base)

    def _take_merge(self, origin: Origin, content: Manifest) -> None:
        request, config = content["request"], content.get("config") or {}
        origin.merge = {**request["settings"], **{key: content.get(key) for key in ("method", "rank", "alpha")}}
        origin.manifests["merge"] = content
        origin.pruned_digest = request["inputs"].get("pruned")
        directory, train = self._input(content, "adapter", request["inputs"].get("adapter"))
        if train and train.get("stage") == "train":
            origin.train, origin.adapter_directory = train["request"]["settings"], directory
            origin.manifests["train"] = train
        else:
            origin.notes.append("the adapter that was merged is gone or was made again, so its training is not known")
        _, prune = self._input(content, "pruned", origin.pruned_digest)
        if prune and prune.get("stage") == "prune":
            self._take_prune(origin, prune)
        elif config.get("prune") and not (config.get("train") or {}).get("input"):
            origin.prune = config["prune"]
            origin.notes.append(
                "the pruned model that it was made from is gone or was made again; how, is told by the merge's config"
            )

    def _input(self, content: Manifest, name: str, wanted: str | None) -> tuple[Path | None, Manifest | None]:
        paths = self._places(content.get("input_paths", {}).get(name), content.get("config") or {})
        return self._find([self._run.directory / name, *paths], wanted)

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
            if content and wanted and content.get("digest") == wanted:
                return path, content
        return None, None

    @staticmethod
    def _from_config(origin: Origin, config: dict[str, Any]) -> None:
        """Believe the config of the evaluation, where there is no manifest any more."""
        train = config.get("train") or {}
        if not train.get("input"):  # a pruned model from elsewhere
            origin.prune = config.get("prune")
        if origin.kind == TUNED and train:
            origin.merge = {**(config.get("merge") or {}), **{key: train.get(key) for key in ("method", "rank")}}
        if origin.prune or origin.merge:
            state = "has no manifest" if origin.directory else "is gone"
            origin.notes.append(f"its directory {state}; how it was made is told by the config of its evaluation")


def _name(model: str) -> str:
    """What a table calls a model: its hub id, or the last part of its path."""
    plain = model.rstrip("/")
    parts = plain.split("/")
    local = plain.startswith(("/", ".", "~")) or len(parts) > 2 or plain.endswith(".gguf")
    return parts[-1] if local else plain
