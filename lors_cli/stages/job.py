"""A stage that was checked and is ready: what `pipeline` performs."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lors_cli.artifacts import digest, manifest
from lors_cli.errors import LorsError


@dataclass
class Job:
    """One stage of one config.

    `settings` and the digests of `inputs` determine the result. `work` fills the directory that it is given and
    returns facts for the manifest; `report` prints the result. A `resumable` job finds what an interrupted one left.
    """

    stage: str
    output: Path
    inputs: dict[str, Path]
    settings: dict[str, Any]
    work: Callable[[Path], dict[str, Any]]
    report: Callable[[], None]
    plan: list[str] = field(default_factory=list)
    resumable: bool = False

    def request(self) -> dict[str, Any]:
        """Everything that determines the result, as JSON would give it back."""
        value = {"settings": self.settings, "inputs": {name: verified_digest(p) for name, p in self.inputs.items()}}
        plain: dict[str, Any] = json.loads(json.dumps(value))
        return plain


def verified_digest(path: Path) -> str:
    """The digest of a model or adapter directory, checked against the one in its manifest where it has one.

    Raises:
        LorsError: the content is not what the manifest says.

    """
    found = digest.of_directory(path)
    recorded = (manifest.read(path) or {}).get("digest", found)
    if found != recorded:
        raise LorsError(
            f"{path} is not what its {manifest.NAME} recorded: a file was damaged or edited. Make it again with"
            f" --force, or delete {path / manifest.NAME} to use it as it is"
        )
    return found
