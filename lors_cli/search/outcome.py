"""What has been measured of a run, kept in its directory, so that it is not measured again and models can go."""

import shutil
from pathlib import Path
from typing import Any

from lors_cli.artifacts import digest, sealed
from lors_cli.config.schema import Config
from lors_cli.errors import DivergedError
from lors_cli.evaluation.metrics import perplexities
from lors_cli.run import manifest
from lors_cli.run.facts import Facts, Pruned, Quantized, Trained
from lors_cli.run.lineage import Lineage, Step
from lors_cli.search import runs
from lors_cli.search.grid_results import held_out_loss
from lors_cli.search.runs import Run, Start
from lors_cli.search.study import Study

FILE = "outcome.json"
# "value" to choose by, "models" as evaluated, facts of the "training", its "cost", or why it "diverged"
Outcome = dict[str, Any]


def read(study: Study, run: Run) -> Outcome:
    """What is known about a run; nothing if it is damaged, or was made with other settings or of another model."""
    request = _request(study, run)
    known: Outcome = sealed.read_or_warn(run.directory / FILE, "the run is measured again") or {}
    return known if known.get("request") == request else {"request": request}


def measure(study: Study, run: Run, wanted: str, *, force: bool) -> Outcome:
    """What was known of the run, and what is `wanted` now. That it diverged is a result too: the rate was too high."""
    known: Outcome = {"request": _request(study, run)} if force else read(study, run)
    try:
        known[wanted] = (_choose if wanted == "value" else _judge)(study, run, force=force)
    except DivergedError as error:
        known["diverged"] = str(error)
    else:
        training = _training(run)
        known["training"] = {key: training.get(key) for key in ("steps", "tokens")}
        known["cost"] = {key: training.get(key) for key in ("seconds", "peak_memory")}
    run.directory.mkdir(parents=True, exist_ok=True)
    sealed.write_json(run.directory / FILE, known)
    if not study.file.keep_models:
        shutil.rmtree(run.directory / "merged", ignore_errors=True)
    return known


def models(config: Config) -> dict[str, Any]:
    """The results of the models that a config has evaluated."""
    evaluation = manifest.read(Path(config.output_dir) / "eval") if config.eval else None
    return evaluation.facts.given.get("models", {}) if evaluation else {}


def run_evaluations(study: Study, run: Run) -> dict[str, Config]:
    """The further evaluations of the model that a run merges."""
    return study.evaluations(run.config, {"merged": str(run.directory / "merged")} if run.config.merge else {})


def start_evaluations(study: Study, start: Start) -> dict[str, Config]:
    """The further evaluations of the models that a start measures."""
    measured = start.config.eval.models if start.config.eval else []
    return study.evaluations(
        start.config, {name: name if name == "dense" else str(start.directory / name) for name in measured}
    )


def further(evaluations: dict[str, Config]) -> dict[str, Any]:
    """The results of further evaluations by their names and those of the models; of none, nothing."""
    found = {
        name: {Path(one).name: result for one, result in models(config).items()} for name, config in evaluations.items()
    }
    return {"evaluations": found} if found else {}


def tokens_seen(model: Path) -> int:
    """The tokens that a model has seen since it was dense: those of its calibration, and of an alignment."""
    made = manifest.read(model) if model.is_dir() else None
    steps = Lineage().back(Step(model, made)) if made else ()
    return sum(_tokens(step.made.facts) for step in steps)


def _tokens(facts: Facts) -> int:
    if isinstance(facts, Pruned | Quantized):
        return int((facts.calibration or {}).get("tokens", 0))
    return (facts.tokens or 0) if isinstance(facts, Trained) else 0


def _choose(study: Study, run: Run, *, force: bool) -> float:
    """Train the run, and measure what the points of a grid are compared by."""
    stages = ["train"] if study.file.choose.by == "held_out_loss" else [s for s in run.stages if s != "eval"]
    runs.perform(run.config, stages, force=force)
    return _chosen_by(study, run, force=force)


def _judge(study: Study, run: Run, *, force: bool) -> dict[str, Any]:
    """Do all stages of the run, and the further evaluations."""
    runs.perform(run.config, run.stages, force=force)
    for evaluation in run_evaluations(study, run).values():
        runs.perform(evaluation, ["eval"], force=force)
    return models(run.config)


def _chosen_by(study: Study, run: Run, *, force: bool) -> float:
    if study.file.choose.by == "held_out_loss":
        return held_out_loss(_training(run))
    evaluation = study.selecting(run)
    runs.perform(evaluation, ["eval"], force=force)
    (measured,) = models(evaluation).values()
    return float(next(iter(perplexities(measured).values()))["value"])


def _training(run: Run) -> dict[str, Any]:
    trained = manifest.read(run.directory / "adapter")
    return trained.content if trained else {}


def _request(study: Study, run: Run) -> dict[str, Any]:
    """What the outcome follows from: the settings, and the model that is trained."""
    model = Path(run.train.input or run.config.model) / manifest.NAME
    return {
        "config": run.config.model_dump(mode="json"),
        "choose": study.file.choose.model_dump(mode="json", exclude={"extend"}),
        "evaluations": study.file.evaluations,
        "model": digest.of_file(model) if model.is_file() else None,
    }
