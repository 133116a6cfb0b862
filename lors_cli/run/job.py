"""A stage that was checked and is ready: what `perform` does."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lors_cli import console
from lors_cli.artifacts import inputs
from lors_cli.artifacts.inputs import Inputs
from lors_cli.artifacts.public import hidden
from lors_cli.config.schema import Config
from lors_cli.evaluation import table
from lors_cli.models import source
from lors_cli.models.effort import Effort
from lors_cli.run import manifest, seal, use
from lors_cli.run.facts import Facts
from lors_cli.run.layout import STAGES
from lors_cli.run.manifest import Request

log = logging.getLogger(__name__)

RESULTS = "results.json"


@dataclass(frozen=True)
class Trains:
    """What a stage trains: `numbers` beside a model of so many `weight_bytes`, for so many optimiser `steps`.

    `shape` is the model's config, as transformers has it.
    """

    numbers: int
    weight_bytes: int
    steps: int
    shape: Any


@dataclass
class Job:
    """One stage of one config.

    Attributes:
        stage: its name.
        config: of the run.
        inputs: the directories and files that it reads.
        settings: what determines the result, together with the digests of the inputs.
        work: fills the directory that it is given, and returns the facts for its manifest.
        plan: what a dry run says that it will do.
        resumable: whether it goes on with what an interrupted one left.
        digests: of the inputs, once `request` was asked for.
        read: the files that it has read so far, which have to stay what they are until it is finished.
        trains: of a stage that trains, what.
        effort: what it computes and moves, for an estimate of its time.

    """

    stage: str
    config: Config
    inputs: dict[str, Path]
    settings: dict[str, Any]
    work: Callable[[Path], Facts]
    plan: list[str] = field(default_factory=list)
    resumable: bool = False
    digests: dict[str, str] = field(default_factory=dict)
    read: Inputs = field(default_factory=Inputs)
    trains: "Trains | None" = None
    effort: Effort = field(default_factory=Effort)

    @property
    def output(self) -> Path:
        """The directory that it makes."""
        return STAGES[self.stage].output(self.config.output_dir)

    def request(self) -> Request:
        """Everything that determines the result; weights that are still on the hub are fetched now.

        Raises:
            LorsError: an input is not what its manifest says, or not what it was when the request was checked.

        """
        with inputs.watched(self.read):
            self.digests = {name: verified_digest(source.complete(path)) for name, path in self.inputs.items()}
            inputs.check()
        return Request(settings=self.plain_settings(), inputs=self.digests)

    def plain_settings(self) -> dict[str, Any]:
        """The settings, as JSON would give them back; a secret that somebody wrote among them is not kept."""
        plain: dict[str, Any] = hidden(json.loads(json.dumps(self.settings)))
        return plain

    def origin(self) -> dict[str, Any]:
        """Where everything came from, for the manifest; the same content under other paths makes the same result.

        Inputs and the run's own directory are absolute: from both, a run that was moved finds what moved with it.
        """
        paths = {name: str(path.absolute()) for name, path in self.inputs.items()}
        hub_ids = {name: known for name, path in self.inputs.items() if (known := source.hub_id(path))}
        config = hidden(self.config.model_dump(mode="json"))
        config["output_dir"] = str(Path(self.config.output_dir).absolute())
        return {"config": config, "input_paths": paths, "hub_ids": hub_ids}

    def show(self) -> None:
        """Print the result: the table of an evaluation, else where it is."""
        made = manifest.read(self.output)
        if made is None or self.stage != "eval":
            console.result(str(self.output))
            for line in use.of_model(self.output, made) if made and self.stage == "merge" else ():
                log.info("merge: now %s", line)
        else:
            shown = table.render(json.loads(seal.content_of(self.output, made, RESULTS))).strip()
            console.result(console.fitted(shown))


def verified_digest(path: Path) -> str:
    """The digest of a file, or of a model or adapter directory, checked against the one in its manifest if it has one.

    Raises:
        LorsError: the content is not what the manifest says.

    """
    if path.is_file():
        return inputs.of_file(path)
    measured, made = inputs.of_directory(path), manifest.read(path)
    if made:
        seal.verify(path, made, measured)
    return measured
