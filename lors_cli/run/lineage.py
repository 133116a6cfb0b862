"""Where a directory comes from: the manifests of what it was made of, and the model at the beginning."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import metadata_load

from lors_cli.artifacts.files import CARD
from lors_cli.run import manifest
from lors_cli.run.manifest import Manifest

NO_PART = {"teacher", "mask"}  # inputs that are looked at and not carried on
INHERITED = ("license", "license_name", "license_link", "language")


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
    def at(cls, path: Path) -> "Original":
        """The model in a directory, which may lie in the hub's cache."""
        hub_id = None
        if path.parent.name == "snapshots" and (folder := path.parents[1].name).startswith("models--"):
            hub_id = folder.removeprefix("models--").replace("--", "/")
        try:
            card = metadata_load(path / CARD) or {}
        except Exception:  # whatever somebody else's README holds, or that there is none, stops no work
            card = {}
        return cls(hub_id or path.name, hub_id, {key: card[key] for key in INHERITED if key in card})


def steps(made: Manifest) -> list[Manifest]:
    """The manifests of what a directory was made from, as far as they are there, in order; its own is the last."""
    earlier: dict[str, Manifest] = {}
    for name, path in made.input_paths.items():
        source = None if name in NO_PART else manifest.read(Path(path))
        if source and source.digest == made.inputs.get(name):  # not made anew from something else since
            earlier |= {step.digest: step for step in steps(source)}
    return [*earlier.values(), made]


def original(made: Manifest) -> Original:
    """The model at the beginning: the original of a recovered adapter, else the first input of the first step."""
    line = steps(made)
    for step in line:
        if step.stage == "recover":  # the small model may have come from elsewhere
            return Original.at(Path(step.input_paths["model"]))
    inputs = [path for name, path in line[0].input_paths.items() if name not in NO_PART]
    return Original.at(Path(inputs[0])) if inputs else Original("a model")
