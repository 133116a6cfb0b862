"""A stage that was checked and is ready: what `pipeline` performs."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lors_cli.artifacts import digest
from lors_cli.config.schema import Config
from lors_cli.errors import LorsError
from lors_cli.models import source
from lors_cli.run import manifest


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
    config: Config
    work: Callable[[Path], dict[str, Any]]
    report: Callable[[], None]
    plan: list[str] = field(default_factory=list)
    resumable: bool = False
    digests: dict[str, str] = field(default_factory=dict)  # of the inputs, once `request` was asked for

    def request(self) -> dict[str, Any]:
        """Everything that determines the result; weights that are still on the hub are fetched now."""
        self.digests = {name: verified_digest(source.complete(path)) for name, path in self.inputs.items()}
        return {"settings": self.plain_settings(), "inputs": self.digests}

    def plain_settings(self) -> dict[str, Any]:
        """The settings, as JSON would give them back."""
        plain: dict[str, Any] = json.loads(json.dumps(self.settings))
        return plain

    def origin(self) -> dict[str, Any]:
        """Where everything came from, for the manifest; the same content under other paths makes the same result."""
        paths = {name: str(path) for name, path in self.inputs.items()}
        return {"config": self.config.model_dump(mode="json"), "input_paths": paths}


def verified_digest(path: Path) -> str:
    """The digest of a file, or of a model or adapter directory, checked against the one in its manifest if it has one.

    Raises:
        LorsError: the content is not what the manifest says.

    """
    if path.is_file():
        return digest.of_file(path)
    found = digest.of_directory(path)
    recorded = (manifest.read(path) or {}).get("digest", found)
    if found != recorded:
        raise LorsError(
            f"{path} is not what its {manifest.NAME} recorded: a file was damaged or edited. Make it again with"
            f" --force, or delete {path / manifest.NAME} to use it as it is"
        )
    return found
