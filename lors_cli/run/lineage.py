"""Where a directory comes from: the manifests of what it was made of, and the model at the beginning."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import metadata_load

from lors_cli.artifacts.files import CARD
from lors_cli.run import manifest

NO_PART = {"teacher", "mask"}  # inputs that are looked at and not carried on
INHERITED = ("license", "license_name", "license_link", "language")


@dataclass(frozen=True)
class Base:
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
    def at(cls, path: Path) -> "Base":
        """The model in a directory, which may lie in the hub's cache."""
        hub_id = None
        if path.parent.name == "snapshots" and (folder := path.parents[1].name).startswith("models--"):
            hub_id = folder.removeprefix("models--").replace("--", "/")
        try:
            found = metadata_load(path / CARD) or {}
        except Exception:  # whatever somebody else's README holds, or that there is none, stops no work
            found = {}
        return cls(hub_id or path.name, hub_id, {key: found[key] for key in INHERITED if key in found})


def steps(content: dict[str, Any]) -> list[dict[str, Any]]:
    """The manifests of what a directory was made from, as far as they are there, in order; its own is the last."""
    found: dict[str, dict[str, Any]] = {}
    digests = content["request"]["inputs"]
    for name, path in content.get("input_paths", {}).items():
        earlier = None if name in NO_PART else manifest.read(Path(path))
        if earlier and earlier["digest"] == digests.get(name):  # not made anew from something else since
            found |= {step["digest"]: step for step in steps(earlier)}
    return [*found.values(), content]


def base(content: dict[str, Any]) -> Base:
    """The model at the beginning: the original of a recovered adapter, else the first input of the first step."""
    found = steps(content)
    for step in found:
        if step["stage"] == "recover":  # the small model may have come from elsewhere
            return Base.at(Path(step["input_paths"]["model"]))
    inputs = [path for name, path in found[0].get("input_paths", {}).items() if name not in NO_PART]
    return Base.at(Path(inputs[0])) if inputs else Base("a model")
