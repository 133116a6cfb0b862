"""Where a directory comes from: the manifests of what it was made of, and the model at the beginning.

A manifest counts only if its digest is the one that was recorded where the directory was used, so a model, adapter or
pruned model that was made again since is never taken for the one that was used.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lors_cli.artifacts.files import card_data
from lors_cli.run import manifest
from lors_cli.run.layout import READS_RECOVERED, STAGES, merges_recovered
from lors_cli.run.manifest import Manifest

NO_PART = {"teacher", "mask"}  # inputs that are looked at and not carried on
INHERITED = ("license", "license_name", "license_link", "language")
# The input through which a model or adapter came to be what it is, and the stages that may have made that input.
BEFORE = {
    "merge": ("adapter", ("train", "recover")),
    "recover": ("adapter", ("train", "recover")),
    "train": ("pruned", ("prune", "align", "quantize")),
    "quantize": ("pruned", ("prune", "align", "merge")),
    "align": ("pruned", ("prune", "align")),
}


@dataclass(frozen=True)
class Step:
    """A directory that a stage has made, and its manifest."""

    directory: Path
    made: Manifest


@dataclass(frozen=True)
class Lineage:
    """The walk from a manifest to those of what its directory was made of.

    Attributes:
        read: gives the manifest of a directory.
        run: a run directory, which may have been moved, with what is beside it, since its manifests were written.

    """

    read: Callable[[Path], Manifest | None] = manifest.read
    run: Path | None = None

    def places(self, recorded: str | None, config: dict[str, Any]) -> list[Path]:
        """Where a path may be now that was recorded by a run of `config`: as it is, or moved together with the run."""
        if not recorded:
            return []
        output = config.get("output_dir")
        moved = [self.run / os.path.relpath(recorded, output)] if output and self.run else []
        return [Path(recorded), *(Path(os.path.normpath(path)) for path in moved)]

    def find(self, places: list[Path], digest: str | None) -> Step | None:
        """The first of the directories whose manifest has the digest; the others tell nothing."""
        for directory in places:
            made = self.read(directory)
            if made and digest and made.digest == digest:
                return Step(directory, made)
        return None

    def input(self, made: Manifest, name: str) -> Step | None:
        """The input `name` of a stage; None if it has no manifest, or is gone or was made again."""
        places = self.places(made.input_paths.get(name), made.config)
        return self.find([self.run / name, *places] if self.run else places, made.inputs.get(name))

    def back(self, step: Step) -> Iterator[Step]:
        """The step and those before it, as far as they are there: from the merge by way of the training to the pruning.

        What a merged or recovered adapter belongs to tells nothing about how the adapter came to be, and is not walked.
        """
        before: Step | None = step
        while before:
            yield before
            name, stages = BEFORE.get(before.made.stage, ("", ()))
            source = self.input(before.made, name) if name else None
            before = source if source and source.made.stage in stages else None

    def steps(self, made: Manifest) -> list[Manifest]:
        """All manifests of what a directory was made from, as far as they are there, in order; its own is the last."""
        earlier: dict[str, Manifest] = {}
        for name in made.input_paths:
            if name not in NO_PART and (source := self.input(made, name)):
                earlier |= {step.digest: step for step in self.steps(source.made)}
        return [*earlier.values(), made]


@dataclass(frozen=True)
class Original:
    """A model that lors did not make.

    Attributes:
        name: its hub id, or the name of its directory.
        hub_id: None if it does not come from the hub.
        metadata: what its own card says and holds for its descendants too.

    """

    name: str
    hub_id: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, steps: list[Manifest], lineage: Lineage) -> "Original":
        """The model at the beginning: the original of a recovered adapter, else the first input of the first step."""
        # the small model of a recovered adapter may have come from elsewhere
        step, name = next(((step, "model") for step in steps if step.stage == "recover"), (steps[0], None))
        name = name or next((name for name in step.input_paths if name not in NO_PART), None)
        if not name:
            return cls("a model")
        places = lineage.places(step.input_paths[name], step.config)
        return cls.at(next((place for place in places if place.is_dir()), places[0]), hub_id(step, name))

    @classmethod
    def at(cls, path: Path, hub_id: str | None = None) -> "Original":
        """The model in a directory, with what its card says if it has one."""
        card = card_data(path)
        return cls(hub_id or path.name, hub_id, {key: card[key] for key in INHERITED if key in card})


def hub_id(made: Manifest, name: str) -> str | None:
    """The hub id of an input, as it was recorded, or in older manifests as the config names the model."""
    if name in made.hub_ids:
        return made.hub_ids[name]
    from lors_cli.models.source import BUILT_IN  # it imports torch, which `lors report` does without

    reads = READS_RECOVERED if made.stage == "merge" and merges_recovered(made.config) else STAGES[made.stage].reads
    config = manifest.flat(made.config)
    asked = next((config[key] for key in reads[name] if isinstance(config.get(key), str)), None)
    if asked is None:
        return None
    # a local model was recorded under the path that the config has, in older manifests as it was written there, and
    # any other had to be fetched or converted
    parts, recorded = Path(asked).expanduser().parts, Path(made.input_paths[name]).parts
    if recorded[len(recorded) - len(parts) :] == parts:
        return None
    return None if asked == BUILT_IN or asked.endswith(".gguf") else asked
