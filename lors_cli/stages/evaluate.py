"""``lors eval``: any models -> <output_dir>/eval, the dense baseline first, side by side in one table."""

import importlib.util
import logging
from typing import Any

from lors_cli import console, processes
from lors_cli.config.evaluation import Eval
from lors_cli.config.schema import Config
from lors_cli.errors import Problem, RequestError, request_error
from lors_cli.models import load
from lors_cli.run import request
from lors_cli.run.graph import Graph, Input
from lors_cli.run.job import Job
from lors_cli.stages import common
from lors_cli.stages.evaluate_models import Evaluation, token_windows

log = logging.getLogger(__name__)


def prepare(config: Config, graph: Graph) -> Job:
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
    read: dict[str, Input] = {name: attempt(graph.input, "eval", name) for name in names}
    if problems:
        raise RequestError(*problems)
    device = load.pick_device(config.device)
    wholes = {name: graph.input("train", "pruned") if name == "tuned" else model for name, model in read.items()}
    models, weights = ({name: model.path for name, model in kind.items()} for kind in (read, wholes))
    skeletons = {}
    for name, model in wholes.items():
        skeletons[name] = model.skeleton(config)
        if token_windows(config, section, model.like) is None:  # otherwise it has read the tokenizer
            load.load_tokenizer(model.like, trust_remote_code=config.trust_remote_code)
        if section.perplexity:
            load.warn_of_length(skeletons[name], section.perplexity.sequence_length, "eval.perplexity.sequence_length")
    largest = max(load.weight_bytes(skeleton, config.dtype) for skeleton in skeletons.values())
    data = section.perplexity.dataset.source("").identity() if section.perplexity else None
    job = Job(
        stage="eval",
        # what an adapter was trained on counts too
        inputs={**models, **({"tuned_on": weights["tuned"]} if "tuned" in weights else {})},
        settings={
            **request.settings(config, section),
            "perplexity_source": data,
            "task_files": asked.digests if asked else {},
        },
        config=config,
        work=lambda partial: Evaluation(config, section, models, weights, asked, device, partial).run(job.digests),
        plan=[
            f"{', '.join(models)}, one at a time",
            *([f"tasks: {', '.join(one.name for one in asked.asked)}"] if asked else []),
            f"memory: weights {largest / 1e9:.2f} GB, logits 1 GB",
        ],
        resumable=True,
    )
    return job


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
