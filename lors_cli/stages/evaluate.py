"""``lors eval``: any models -> <output_dir>/eval, the dense baseline first, side by side in one table."""

import importlib.util
import logging
from pathlib import Path
from typing import Any

from lors_cli import console, processes
from lors_cli.config.evaluation import Eval
from lors_cli.config.schema import Config
from lors_cli.errors import Problem, RequestError, request_error
from lors_cli.models import load, source
from lors_cli.run.job import Job
from lors_cli.stages import common
from lors_cli.stages.evaluate_models import Evaluation, token_windows

log = logging.getLogger(__name__)

# Which directory a name in eval.models stands for, and the stage that makes it.
MADE_BY = {"aligned": ("aligned", "align"), "tuned": ("adapter", "train"), "merged": ("merged", "merge")}
# How it is measured, which may change before an interrupted evaluation goes on.
NOT_OF_THE_RESULT = ("batch_size", "offline", "allow_code_execution")


def prepare(config: Config, earlier: list[str]) -> Job:
    """Check that the models, the text and the tasks are there; load no weights.

    Raises:
        RequestError: something is missing.

    """
    section = common.section(config, "eval", config.eval)
    _check_backend(section)
    problems: list[Problem] = []

    def attempt(step: Any, *arguments: Any) -> Any:
        try:
            return step(*arguments)
        except RequestError as error:  # what is missing is named at once, for one trip to a machine with a network
            problems.extend(error.problems)

    if section.perplexity:
        attempt(next, section.perplexity.dataset.source("eval.perplexity.dataset").texts())
    asked = attempt(benchmarks, section)
    names = sorted(section.models, key="dense".__ne__)
    models: dict[str, Path] = {name: attempt(directory, config, name, earlier) for name in names}
    if problems:
        raise RequestError(*problems)
    device = load.pick_device(config.device)
    weights = {name: _tuned_weights(config, earlier) if name == "tuned" else path for name, path in models.items()}
    skeletons = {}
    for name, path in weights.items():
        structure = common.structure_directory(config, path, earlier)
        skeletons[name] = load.skeleton(structure, trust_remote_code=config.trust_remote_code)
        if token_windows(config, section, structure) is None:  # otherwise it has read the tokenizer
            load.load_tokenizer(structure, trust_remote_code=config.trust_remote_code)
        if section.perplexity:
            load.warn_of_length(skeletons[name], section.perplexity.sequence_length, "eval.perplexity.sequence_length")
    output = Path(config.output_dir) / "eval"
    largest = max(load.weight_bytes(skeleton, config.dtype) for skeleton in skeletons.values())
    data = section.perplexity.dataset.source("").identity() if section.perplexity else None
    settings = {k: v for k, v in common.settings(config, section).items() if k not in NOT_OF_THE_RESULT}
    job = Job(
        stage="eval",
        output=output,
        # what an adapter was trained on counts too
        inputs={**models, **({"tuned_on": weights["tuned"]} if "tuned" in weights else {})},
        settings={**settings, "perplexity_source": data, "task_files": asked.digests if asked else {}},
        config=config,
        work=lambda partial: Evaluation(config, section, models, weights, asked, device, partial).run(job.digests),
        report=lambda: console.result((output / "results.md").read_text().strip()),
        plan=[
            f"{', '.join(models)}, one at a time",
            *([f"tasks: {', '.join(one.name for one in asked.asked)}"] if asked else []),
            f"memory: weights {largest / 1e9:.2f} GB, logits 1 GB",
        ],
        resumable=True,
    )
    return job


def _tuned_weights(config: Config, earlier: list[str]) -> Path:
    """The model that the adapter of eval.models' "tuned" was trained on."""
    return common.pruned_directory(config, "train", earlier)


def _check_backend(section: Eval) -> None:
    if section.backend == "vllm":
        if "tuned" in section.models:
            remedy = "merge it, or backend: transformers"
            raise request_error("eval.models", "whole models for vllm", "tuned", remedy)
        if importlib.util.find_spec("vllm") is None:
            remedy = "pip install 'lm-eval[vllm]', or backend: transformers"
            raise request_error("eval.backend", "a backend that is installed", "vllm", remedy)
        if processes.count() > 1:
            got = f"vllm in {processes.count()} processes"
            raise request_error(
                "eval.backend", "vllm in one process; it spreads over GPUs itself", got, "start it once"
            )


def benchmarks(section: Eval) -> Any:
    """What the section asks of lm-eval, as `lors_cli.evaluation.benchmarks.load` gives it; None if it asks nothing.

    Raises:
        RequestError: tasks or their data are missing.

    """
    if not section.tasks and not section.preset:
        return None
    from lors_cli.evaluation.benchmarks import load as find  # lm-eval takes seconds to import

    with console.third_party_output():
        return find(section)


def directory(config: Config, name: str, earlier: list[str]) -> Path:
    """Where the model is that eval.models calls `name`.

    Raises:
        RequestError: it is nowhere, and no stage of this run makes it.

    """
    if name == "dense":
        return source.resolve(config.model)
    if name == "pruned":
        return common.pruned_directory(config, "eval", earlier)
    if name in MADE_BY:
        place, stage = MADE_BY[name]
        return common.previous(config, place, stage, "eval.models", earlier)
    return source.resolve(name, "eval.models")
