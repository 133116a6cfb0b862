"""``lors eval``: any models -> <output_dir>/eval, the dense baseline first, side by side in one table."""

import importlib.util
import logging
import operator
from collections.abc import Generator
from functools import partial, reduce
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from lors_cli import console, numerics, processes
from lors_cli.artifacts import adapter_file
from lors_cli.artifacts.packed_model import is_packed
from lors_cli.config.evaluation import Eval
from lors_cli.config.schema import Config
from lors_cli.data import once
from lors_cli.errors import Problem, RequestError, request_error
from lors_cli.evaluation.evaluate import Evaluation, Request
from lors_cli.evaluation.judged import Rows, Text
from lors_cli.evaluation.samples import Samples, without_system, without_template
from lors_cli.models import effort, load
from lors_cli.models.device import pick_device
from lors_cli.models.effort import Effort
from lors_cli.reporting.text import plural
from lors_cli.run import belongs, environment, request
from lors_cli.run.facts import Evaluated
from lors_cli.run.graph import Graph, Input
from lors_cli.run.job import Job
from lors_cli.stages import common

log = logging.getLogger(__name__)


def prepare(config: Config, graph: Graph) -> Generator[None, None, Job]:
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

    texts = _texts(section)
    for text in texts.values():
        attempt(text.check)
    asked = attempt(benchmarks, section)
    device = attempt(pick_device, config.device)
    if problems and graph.converts:
        raise RequestError(*problems)
    yield
    names = sorted(section.models, key="dense".__ne__)
    read: dict[str, Input] = {name: attempt(graph.input, "eval", name) for name in names}
    if problems:
        raise RequestError(*problems)
    if section.backend == "vllm" and (packed := [name for name, model in read.items() if is_packed(model.path)]):
        remedy = "unpack it, or set backend: transformers"
        raise request_error("eval.models", "models that are not packed for vllm", packed[0], remedy)
    wholes = {name: graph.input("train", "pruned") if name == "tuned" else model for name, model in read.items()}
    models, weights = ({name: model.path for name, model in kind.items()} for kind in (read, wholes))
    skeletons = {}
    counted = 0
    samples = (
        None
        if section.samples is None
        else Samples(tuple(section.samples.prompts), section.samples.max_new_tokens, section.system)
    )
    for name, model in wholes.items():
        skeletons[name] = model.skeleton(config, quantized=True)
        tokenizer = load.load_tokenizer(model.like, skeletons[name], trust_remote_code=config.trust_remote_code)
        for text in texts.values():
            judged, _ = once.read(("samples", text, model.like), partial(text.samples, tokenizer, model.like))
            counted = max(counted, sum(len(one.ids) for one in judged))
            key = text.source.key.removesuffix(".dataset")
            load.warn_of_length(skeletons[name], text.length, f"{key}.sequence_length")
        problems += _of_model(name, skeletons[name], tokenizer, asked)
        dropped = without_system(section.system, name, tokenizer)  # which is said once, for tasks and samples
        problems += samples.problems(name, skeletons[name], tokenizer) if samples and not dropped else []
        if section.chat_template and tokenizer.chat_template is None:
            problems.append(without_template("eval.chat_template", name))
        problems += dropped
    if problems:
        raise RequestError(*problems)
    if "tuned" in read and not read["tuned"].maker and not wholes["tuned"].maker:
        _check_tuned(read["tuned"].path, wholes["tuned"].path, skeletons["tuned"])
    largest = max(load.weight_bytes(skeleton, config.dtype) for skeleton in skeletons.values())
    data = [text.source.identity() for text in texts.values()]
    evaluation = Request(
        models=models,
        weights=weights,
        texts=texts,
        benchmarks=asked,
        dtype=config.dtype,
        device=device,
        seed=config.seed,
        trust_remote_code=config.trust_remote_code,
        samples=samples,
        **section.model_dump(
            include={"backend", "batch_size", "limit", "allow_code_execution", "chat_template", "system"}
        ),
    )
    job = Job(
        stage="eval",
        # what an adapter was trained on counts too
        inputs={**models, **({"tuned_on": weights["tuned"]} if "tuned" in weights else {})},
        settings={
            **request.settings(config, section),
            "perplexity_source": data if isinstance(section.perplexity, list) else data[0] if data else None,
            "task_files": asked.digests if asked else {},
        },
        config=config,
        work=lambda partial: _measure(job, section, evaluation, partial),
        plan=[
            f"{', '.join(models)}, one at a time",
            *([f"tasks: {', '.join(one.name for one in asked.asked)}"] if asked else []),
            *(
                [
                    f"samples: {plural(len(samples.prompts), 'prompt')}, answers of at most"
                    f" {samples.max_new_tokens} tokens"
                ]
                if samples
                else []
            ),
            f"memory: weights {largest / 1e9:.2f} GB, logits 1 GB",
        ],
        resumable=True,
        effort=reduce(operator.add, (_effort(one, config.dtype, evaluation, counted) for one in skeletons.values())),
    )
    return job


def _effort(skeleton: PreTrainedModel, dtype: str, evaluation: Request, counted: int) -> Effort:
    """What it takes to measure one model on `counted` tokens of perplexity, on the tasks and on the samples."""
    written = 0
    if samples := evaluation.samples:
        written += len(samples.prompts) * samples.max_new_tokens
    if evaluation.benchmarks:
        from lors_cli.evaluation import task_check

        for one in evaluation.benchmarks.asked:
            for task in one.tasks():
                read, made = task_check.tokens(task, evaluation.limit)
                counted, written = counted + read, written + made
    return effort.measured(skeleton, dtype, counted, written)


def _of_model(name: str, skeleton: Any, tokenizer: Any, asked: Any) -> list[Problem]:
    """What keeps a model from answering the tasks."""
    if not asked:
        return []
    from lors_cli.evaluation import task_check  # lm-eval takes seconds to import

    tasks = [task for one in asked.asked for task in one.tasks()]
    return [problem for task in tasks for problem in task_check.of_model(task, name, skeleton, tokenizer)]


def _texts(section: Eval) -> dict[str, Text | Rows]:
    """What perplexity is measured on, by the names of the perplexities."""
    return {
        key: common.judged(one, f"eval.perplexity[{number}]" if key else "eval.perplexity")
        for number, (key, one) in enumerate(section.perplexities.items())
    }


def _measure(job: Job, section: Eval, evaluation: Request, partial: Path) -> Evaluated:
    if adapter := evaluation.models.get("tuned"):  # again, because an earlier stage may have made them
        whole = evaluation.weights["tuned"]
        _check_tuned(
            adapter, whole, load.skeleton(whole, trust_remote_code=evaluation.trust_remote_code, quantized=True)
        )
    facts = {
        "settings": _recorded(section, evaluation),
        "versions": environment.versions(),
        "numerics": numerics.in_force(),
    }
    return Evaluated(**Evaluation(evaluation, partial).run(job.digests, facts))


def _check_tuned(adapter: Path, whole: Path, skeleton: PreTrainedModel) -> None:
    belongs.check(adapter, adapter_file.load(adapter, "eval.models"), whole, skeleton, "eval.models")


def _recorded(section: Eval, evaluation: Request) -> dict[str, Any]:
    """What must be equal for two numbers to be comparable."""
    dtype: Any = evaluation.dtype
    if dtype == "auto":
        trust = evaluation.trust_remote_code
        models = {
            name: load.skeleton(path, trust_remote_code=trust, quantized=True)
            for name, path in evaluation.weights.items()
        }
        dtype = {name: str(model.config.dtype).removeprefix("torch.") for name, model in models.items()}
    perplexities = [
        {**section.perplexities[name].model_dump(mode="json"), **text.rules} for name, text in evaluation.texts.items()
    ]
    several = isinstance(section.perplexity, list)
    windows = {"perplexity": perplexities if several else perplexities[0]} if perplexities else {}
    asked = section.model_dump(include={"preset", "tasks", "shots", "task_dir", "backend"})
    spoken = section.model_dump(include={"samples", "chat_template", "system"})
    enclosures = evaluation.benchmarks.enclosures if evaluation.benchmarks else {}
    enclosed = {"sandbox": enclosures} if enclosures else {}
    given = {key: value for key, value in spoken.items() if value}
    return {"dtype": dtype, "seed": evaluation.seed, "limit": evaluation.limit, **windows, **asked, **enclosed, **given}


def _check_backend(section: Eval) -> None:
    if section.backend == "vllm":
        if "tuned" in section.models:
            remedy = "merge it, or set backend: transformers"
            raise request_error("eval.models", "whole models for vllm", "tuned", remedy)
        if importlib.util.find_spec("vllm") is None:
            remedy = "pip install 'lm-eval[vllm]', or set backend: transformers"
            raise request_error("eval.backend", "a backend that is installed", "vllm", remedy)
        if processes.count() > 1:
            got = f"vllm in {processes.count()} processes"
            raise request_error(
                "eval.backend", "vllm in one process, because it uses several GPUs by itself", got, "start it once"
            )


def benchmarks(section: Eval) -> Any:
    """What the section asks of lm-eval, as `lors_cli.evaluation.benchmarks.load` gives it; None if it asks nothing.

    Raises:
        RequestError: tasks or their data are missing.

    """
    if not section.tasks and not section.preset:
        return None
    from lors_cli.evaluation.benchmarks import load as find  # lm-eval takes seconds to import

    names = {"preset", "tasks", "shots", "limit", "task_dir", "data_dir", "allow_code_execution", "trust_task_code"}
    options = section.model_dump(include=names)
    with console.third_party_output():
        return find(**options)
