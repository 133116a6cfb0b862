"""Run directories: where they lie, and their evaluations, read and verified before a number is believed."""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lors_cli import __version__
from lors_cli.artifacts import publish
from lors_cli.errors import LorsError, Problem, RequestError
from lors_cli.evaluation import items, metrics
from lors_cli.run import manifest, places, seal, tidy
from lors_cli.run.layout import STAGES
from lors_cli.run.manifest import Manifest

EVAL, RESULTS = "eval", "results.json"
OUTPUTS = tuple(stage.folder for stage in STAGES.values())
WANTED = f"a run directory (with {', '.join(OUTPUTS[:-1])} or {EVAL} in it), or a folder of such"


@dataclass(frozen=True)
class LeftOut:
    """Something that is not in the report: what, why, and what would bring it in."""

    path: Path
    reason: str
    remedy: str


def by_reason(left_out: list[LeftOut]) -> list[tuple[str, str, list[Path]]]:
    """Reasons and remedies, each with the places that it holds for."""
    places: dict[tuple[str, str], list[Path]] = {}
    for one in left_out:
        places.setdefault((one.reason, one.remedy), []).append(one.path)
    return [(*why, paths) for why, paths in places.items()]


@dataclass(frozen=True)
class Run:
    """A run directory whose evaluation can be used: the manifest and the results of it."""

    directory: Path
    manifest: Manifest
    results: dict[str, Any]

    @property
    def config(self) -> dict[str, Any]:
        """The config of the evaluation."""
        return self.manifest.config


@dataclass
class Manifests:
    """The manifests of directories, each read once. One that is damaged is taken as absent and remembered."""

    damaged: dict[Path, str] = field(default_factory=dict)
    _read: dict[Path, Manifest | None] = field(default_factory=dict)

    def of(self, directory: Path) -> Manifest | None:
        """The manifest of `directory`, None if it has none that can be read."""
        if directory not in self._read:
            try:
                self._read[directory] = manifest.read(directory)
            except (LorsError, OSError) as error:
                self._read[directory] = None
                self.damaged[directory] = error.reason if isinstance(error, manifest.DamagedError) else str(error)
        return self._read[directory]


def find(arguments: list[Path]) -> tuple[list[Path], list[LeftOut]]:
    """The run directories that are or lie below the arguments, in order of their paths; and unfinished work.

    Raises:
        RequestError: an argument does not exist, or holds no run directory.

    """
    problems, runs, unfinished = [], dict[Path, Path](), list[LeftOut]()
    for argument in arguments:
        places.exists("RUN_DIR", argument)
        if not argument.is_dir():
            got = f"{argument}, {'a file' if argument.exists() else 'which does not exist'}"
            problems.append(Problem("RUN_DIR", WANTED, got, "correct the path"))
            continue
        start = argument.parent if argument.name in OUTPUTS and (argument / manifest.NAME).is_file() else argument
        directories = list(_below(start))
        if not directories:
            remedy = "name the output_dir of a config, or the folder above several"
            problems.append(Problem("RUN_DIR", WANTED, f"{argument}, which has none in it", remedy))
        for directory in directories:
            tidy.run_directory(directory)
            if runs.setdefault(directory.resolve(), directory) == directory:
                unfinished += _unfinished(directory)
    if problems:
        raise RequestError(*problems)
    return [runs[key] for key in sorted(runs)], list(dict.fromkeys(unfinished))


def _below(start: Path) -> Iterator[Path]:
    """The run directories from `start` downwards; each place is visited once, whatever links lead to it."""
    seen = set()
    for place, directories, _ in os.walk(start, followlinks=True):
        path = Path(place)
        real = os.path.realpath(place)
        if real in seen:
            directories.clear()
            continue
        seen.add(real)
        partials = {publish.partial_directory(path / name).name for name in OUTPUTS}
        if partials & set(directories) or any(_is_output(path / name) for name in OUTPUTS if name in directories):
            yield path
        directories[:] = sorted(
            name for name in directories if not name.startswith(".") and not _is_output(path / name)
        )


def _is_output(directory: Path) -> bool:
    """Whether a directory is what a stage writes, rather than a folder that happens to have such a name."""
    if directory.name not in OUTPUTS:
        return False
    return any((directory / name).is_file() for name in (manifest.NAME, RESULTS, "config.json", "adapter_config.json"))


def _unfinished(directory: Path) -> list[LeftOut]:
    """The work in a run directory that was interrupted or is going on."""
    partials = {name: publish.partial_directory(stage.output(directory)) for name, stage in STAGES.items()}
    return [
        LeftOut(path, "unfinished work, interrupted or going on", f"`lors {name}` finishes it")
        for name, path in partials.items()
        if path.is_dir()
    ]


def read(directory: Path, manifests: Manifests) -> Run | LeftOut:
    """The evaluation in a run directory, if all of it is as it was written."""
    place = directory / EVAL
    again = "`lors eval` with --force measures again"

    def refuse(reason: str, remedy: str = again) -> LeftOut:
        return LeftOut(directory, reason, remedy)

    if not place.is_dir():
        return refuse("it has no eval/, so nothing was measured", "`lors eval`")
    made = manifests.of(place)
    if place in manifests.damaged:
        return refuse(manifests.damaged[place])
    if made is None:
        return refuse(f"eval/ has no {manifest.NAME}: it was copied in part, or not finished")
    if made.stage != "eval":
        return refuse(f"eval/{manifest.NAME} is of another stage, {made.stage!r}")
    try:
        results = json.loads(seal.content_of(place, made, RESULTS))
    except FileNotFoundError:
        return refuse(f"eval/ has no {RESULTS}")
    except (ValueError, OSError) as error:
        return refuse(f"eval/{RESULTS} cannot be read: {error}")
    except LorsError:
        return refuse(f"eval/ is not what lors wrote: {RESULTS} was edited or damaged")
    if damage := seal.damage(place, made):
        return refuse(f"eval/ is not what lors wrote: {damage}")
    version = made.versions.get("lors_cli", "?")
    if version.partition(".")[0] != __version__.partition(".")[0]:
        return refuse(f"it was evaluated by lors {version}, and this is {__version__}", "use that version, or " + again)
    if reason := _misshapen(results):
        return refuse(f"eval/{RESULTS} is not as lors writes it: {reason}")
    return Run(directory, made, results)


def _misshapen(results: Any) -> str | None:
    """What is wrong with the form of results; None if it is as it should be."""
    if not isinstance(results, dict) or not isinstance(results.get("models"), dict) or not results["models"]:
        return "no models"
    if not isinstance(results.get("settings"), dict):
        return "no settings"
    for name, model in results["models"].items():
        if not isinstance(model, dict) or not isinstance(model.get("tasks", {}), dict):
            return f"{name} has no results"
        if not _number(model.get("sparsity")):
            return f"{name} has no sparsity"
        if not isinstance(model.get("perplexities", {}), dict):
            return f"{name} has no results"
        if "perplexity" in model and not model["perplexity"]:
            return f"{name} has a perplexity without a value"
        for part, one in metrics.perplexities(model).items():
            if part and not re.fullmatch(items.PART, part):  # it would be a path to elsewhere
                return f"{name} has a perplexity called {part!r:.100}"
            if not isinstance(one, dict) or not _number(one.get("value")):
                return f"{name} has a perplexity without a value"
        if not all(isinstance(entry, dict) for entry in model.get("tasks", {}).values()):
            return f"{name} has a task without results"
    return None


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
