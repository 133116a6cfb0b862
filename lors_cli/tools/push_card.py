"""The card that ``lors push`` uploads: the directory's own, with results and the name of the repository."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard

from lors_cli.artifacts import digest
from lors_cli.artifacts.files import CARD
from lors_cli.artifacts.public import text_without_places, without_places
from lors_cli.config.dump import as_yaml
from lors_cli.errors import LorsError, request_error
from lors_cli.evaluation import table
from lors_cli.evaluation.metrics import asked_for, headline, perplexities
from lors_cli.run import card as cards
from lors_cli.run import manifest, seal
from lors_cli.run.job import RESULTS, verified_digest
from lors_cli.run.manifest import Manifest

log = logging.getLogger(__name__)

TASK = "text-generation"


def card(directory: Path, made: Manifest, repo_id: str) -> str:
    """The card of a published directory for the repository `repo_id`; made anew where the directory has none.

    Raises:
        RequestError: the one that is there has faulty metadata.

    """
    path = directory / CARD
    if path.is_file() and made.files is not None and digest.of_file(path) != made.files.get(CARD):
        log.info("push: %s was edited since lors wrote it, and is sent as it is", path)
    text = path.read_text() if path.is_file() else cards.render(directory, made, as_yaml(without_places(made.config)))
    try:
        shown = ModelCard(text)
    except Exception as error:  # of the YAML parser or of the metadata's checks
        reason = str(error).splitlines()[0]
        raise request_error(CARD, "a card that the hub can read", reason, "correct its first lines", path) from None
    if (evaluated := _evaluation(directory, made)) is not None:
        name, results, shown_results = evaluated
        data: Any = shown.data
        data.model_name = repo_id.rpartition("/")[2]
        data.eval_results = list(_entries(results["models"][name], results["settings"]))
        section = f"## Results\n\nThis model is `{without_places(name)}`.\n\n{shown_results.strip()}\n\n"
        before, heading, after = shown.text.partition(cards.HISTORY)
        shown.text = f"{before}{section}{heading}{after}"
    return str(shown).replace(cards.HERE, repo_id)


def _evaluation(directory: Path, made: Manifest) -> tuple[str, dict[str, Any], str] | None:
    """What the run's evaluation calls this model, its results and their table; None if it is of other models."""
    evaluated = directory.resolve().parent / "eval"
    try:
        recorded = manifest.read(evaluated)
        if recorded is None:
            return None
        verified_digest(evaluated)
    except LorsError as error:
        log.warning("push: the card does not have results: %s", error)
        return None
    name = next((name for name, known in recorded.inputs.items() if known == made.digest), None)
    if name is None:
        log.info("push: the card does not have results, because %s is of other models than this one", evaluated)
        return None
    results = json.loads(seal.content_of(evaluated, recorded, RESULTS))
    return name, results, text_without_places(table.render(results), results)


def _entries(results: dict[str, Any], settings: dict[str, Any]) -> Iterator[EvalResult]:
    """The hub's form of the results of one model; of a group of tasks the whole."""
    for part, measured in perplexities(results).items():
        name = without_places(asked_for(settings, part)["dataset"]["path"])
        yield EvalResult(TASK, name, name, "perplexity", measured["value"])
    for task, entry in results["tasks"].items():
        metric = headline(entry)
        if metric in entry and "group" not in entry:
            yield EvalResult(TASK, task, task, str(metric).partition(",")[0], entry[metric], metric_name=metric)
