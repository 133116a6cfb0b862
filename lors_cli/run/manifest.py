"""``lors.json``: how a directory came to be. Written last, so a directory that has one is complete.

A manifest has the same fields for every stage, and facts of a type for each stage. On disk both are one flat object, in
which keys that nothing was said about are left out. Keys that this version does not know are kept as they are.

It holds the digests of all files that were published with it, and of itself: that is its seal (`run.seal`). What is
printed or gone on from is checked against them. Manifests of version 0.1 have neither, and are read without.
"""

import json
import os
import re
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from lors_cli import numerics
from lors_cli.artifacts import digest
from lors_cli.artifacts.files import each_key_once
from lors_cli.artifacts.public import without_secrets
from lors_cli.errors import LorsError
from lors_cli.run import environment
from lors_cli.run.facts import FACTS, Aligned, Facts, Number, Quantized, Record

NAME = "lors.json"
UNSEALED = re.compile(r"$|\?$|0\.[01](\.|$)")  # the versions whose manifests have no seal
AS_IT_IS = "delete {} to use the directory as it is"


class DamagedError(LorsError):
    """A manifest that is not as lors wrote it; `reason` says so without a remedy, for those who have another."""

    def __init__(self, path: Path, found: str) -> None:
        self.reason = f"{path} is damaged ({found})"
        super().__init__(f"{self.reason}; make the directory again with --force, or {AS_IT_IS.format(path)}")


class Request(Record):
    """All that determines a result; two requests that are equal have equal results."""

    settings: dict[str, Any] = Field(default_factory=dict)
    inputs: dict[str, str] = Field(default_factory=dict)  # the digest of each input by its name

    @property
    def content(self) -> dict[str, Any]:
        """The request as it is on disk."""
        return self.model_dump()


class Manifest(Record):
    """How a directory came to be."""

    stage: str
    created: str = ""
    command: str = ""
    request: Request
    digest: str  # the digest of the directory
    facts: Facts
    config: dict[str, Any] = Field(default_factory=dict)
    input_paths: dict[str, str] = Field(default_factory=dict)
    hub_ids: dict[str, str] = Field(default_factory=dict)  # ids of the inputs that came from the hub
    versions: dict[str, str] = Field(default_factory=dict)
    hardware: dict[str, Any] = Field(default_factory=dict)
    numerics: dict[str, Any] = Field(default_factory=dict)  # what decided how torch computed, besides the dtype
    seconds: Number | None = None
    peak_memory: dict[str, int] = Field(default_factory=dict)
    files: dict[str, str] | None = None  # the digests of the files that were published with it, by their names
    seal: str | None = None  # the digest of all the rest of the manifest

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that determine the result."""
        return self.request.settings

    @property
    def inputs(self) -> dict[str, str]:
        """The digest of each input by its name."""
        return self.request.inputs

    @property
    def model_digest(self) -> str | None:
        """The digest of an adapter's model: the original for a recovered one, otherwise the model it was trained on."""
        return self.inputs.get("model" if self.stage == "recover" else "pruned")

    @property
    def original_digest(self) -> str | None:
        """The digest of the model that was pruned to make this one; None where that is not recorded."""
        recorded = self.facts.original if isinstance(self.facts, Aligned | Quantized) else None
        return recorded or self.inputs.get("model")

    @property
    def content(self) -> dict[str, Any]:
        """The manifest as it is on disk: one flat object, with the facts after the digest of the directory."""
        content = {}
        for key, value in self.model_dump(exclude={"facts"}, exclude_unset=True).items():
            content[key] = value
            if key == "digest":
                content |= self.facts.given
        return content


def read(directory: Path) -> Manifest | None:
    """The manifest of `directory`, or None where there is none.

    Raises:
        DamagedError: it cannot be read, is not JSON, has values of other types than it should have, or was edited.

    """
    path = directory / NAME
    if not os.path.lexists(path):
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=each_key_once("{} stands there twice"))
        made = parse(content)
        _check_seal(content, made)
        return made
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc'])) or 'its content'}: {first['msg']}"
    except (ValueError, OSError, RecursionError) as error:
        reason = str(error)
    raise DamagedError(path, reason)


def _check_seal(content: dict[str, Any], made: Manifest) -> None:
    sealed = {key: value for key, value in content.items() if key != "seal"}
    if made.seal is not None and made.seal != digest.of_value(sealed):
        raise ValueError("it is not what lors wrote: its seal differs, so it was edited")
    version = made.versions.get("lors_cli", "")
    if (made.seal is None or made.files is None) and (made.files or made.seal or not UNSEALED.match(version)):
        raise ValueError(f"it has no {'seal' if made.seal is None else 'files'}, as all of lors {version or '?'} have")


def parse(content: Any) -> Manifest:
    """The manifest with this content.

    Raises:
        ValueError: its values are not of the types that they should have.

    """
    if not isinstance(content, dict):
        raise ValueError("it is not one that lors wrote")
    common = {key: content[key] for key in content.keys() & Manifest.model_fields.keys() - {"facts"}}
    facts = FACTS.get(str(content.get("stage")), Facts)
    recorded = {key: value for key, value in content.items() if key not in common}
    return Manifest(**common, facts=facts(**recorded))


def build(
    directory: Path,
    stage: str,
    request: Request,
    facts: Facts,
    seconds: float,
    *,
    config: dict[str, Any] | None = None,
    input_paths: dict[str, str] | None = None,
    hub_ids: dict[str, str] | None = None,
) -> Manifest:
    """The manifest of a finished `directory`, made on this machine in so many seconds."""
    from lors_cli.models import memory  # it imports torch, which whoever only reads manifests does without

    origin: dict[str, Any] = {"config": config, "input_paths": input_paths, "hub_ids": hub_ids or None}
    return Manifest(
        stage=stage,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=without_secrets(" ".join(sys.argv)),
        request=request,
        digest=digest.of_directory(directory),
        facts=facts,
        **{key: value for key, value in origin.items() if value is not None},
        versions=environment.versions(),
        hardware=environment.hardware(),
        numerics=numerics.in_force(),
        seconds=round(seconds, 2),
        peak_memory=memory.peaks(),
    )


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of nested dictionaries by their dotted keys."""
    if isinstance(value, dict) and value:
        return {k: v for name, part in value.items() for k, v in flat(part, f"{prefix}.{name}".strip(".")).items()}
    return {prefix: value}


def by_place(modules: dict[str, dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The facts about linears, those of the same place in their blocks together."""
    places: dict[str, list[dict[str, Any]]] = {}
    for name, facts in modules.items():
        places.setdefault(name.rsplit(".", 1)[-1], []).append(facts)
    return places
