"""What can be known of a task before a model answers it: whether its numbers will measure the model."""

import logging
from collections.abc import Iterator
from itertools import islice
from typing import Any

from lm_eval.api.task import ConfigurableTask
from lm_eval.models.utils import normalize_gen_kwargs, resolve_max_length
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lors_cli import processes
from lors_cli.errors import Problem

log = logging.getLogger(__name__)

TASKS, SHOTS = "eval.tasks", "eval.shots"
CORRECT = "correct the task's file"
BY_LENGTH = {"acc_norm", "acc_bytes"}  # metrics that divide by the length of a choice
OF_CHOICES = {"acc", *BY_LENGTH}  # metrics that tell the best one of several choices
NO_METRIC = "bypass"  # lm-eval's, which gives 999 whatever the answers
DEFAULT_ANSWER_TOKENS = 256  # of lm-eval
LETTERS = 4  # in a token, about


def of_task(task: Any, limit: int | None) -> Iterator[Problem]:
    """What is wrong with a task of lm-eval, whatever the model; its first prompt is built for that.

    Args:
        task: with the number of examples for its prompts set.
        limit: how many items are measured.

    """
    if getattr(task, "MULTIMODAL", False):
        yield Problem(TASKS, "tasks of text", f"{task.task_name}, which has images or sound", "leave it out")
        return
    if set(task.aggregation()) == {NO_METRIC}:
        yield Problem(TASKS, f"a metric of {task.task_name}", f"{NO_METRIC}, which measures nothing", CORRECT)
    count = len(task.eval_docs) if limit is None else min(limit, len(task.eval_docs))
    if count < processes.count():
        wanted = f"at least {processes.count()} items of {task.task_name}, one for each process"
        yield Problem("eval.limit", wanted, str(count), "start fewer processes")
        return
    if isinstance(task, ConfigurableTask) and (problems := list(_of_examples(task))):
        yield from problems
        return
    try:
        task.build_all_requests(limit=1, rank=0, world_size=1)
        yield from _of_choices(task, count)
    except Exception as error:  # code and templates of tasks raise whatever they like
        yield Problem(TASKS, f"a correct task {task.task_name}", f"{type(error).__name__}: {error}", CORRECT)


def of_group(group: Any) -> Iterator[Problem]:
    """Whether all tasks of a group of lm-eval have its metrics, which would be averaged over the others alone."""
    for metric in (one.metric for one in group.aggregate_metric_list or []):
        without = [task.task_name for task in group.get_all_tasks() if metric not in task.aggregation()]
        if without:
            wanted = f"{metric}, a metric of the group {group.name}, in all tasks of it"
            yield Problem(TASKS, wanted, f"{', '.join(without)} without it", "name the tasks instead of the group")


def _of_examples(task: Any) -> Iterator[Problem]:
    """Whether the prompts can have as many examples, and none that holds its own answer."""
    shots = task.config.num_fewshot or 0
    if not shots:
        return
    pool = getattr(getattr(task, "sampler", None), "df", None)
    if pool is None:
        yield Problem(SHOTS, f"0 for {task.task_name}, which has no examples", str(shots), "leave eval.shots out")
        return
    excluded = task.fewshot_cfg.split == task.config.test_split  # lm-eval then takes the item out of its examples
    if len(pool) < shots + excluded:
        wanted = f"at most {max(len(pool) - excluded, 0)} examples for {task.task_name}, as many as it has"
        yield Problem(SHOTS, wanted, str(shots), "set a smaller number")
    elif may_draw_itself(task):
        split = _measured(task)
        log.warning(
            "%s draws its examples from %r, the split that is measured: items may get their own answer,"
            " which the results count; a training_split in the task's file avoids it",
            task.task_name,
            split,
        )


def may_draw_itself(task: Any) -> bool:
    """Whether an item may be among the examples of its own prompt."""
    if not isinstance(task, ConfigurableTask):
        return False
    config, split = task.config, task.fewshot_cfg.split
    if not config.num_fewshot or split == config.test_split or (split is None and task.fewshot_cfg.samples):
        return False
    drawn = split or config.training_split or config.validation_split or config.test_split
    return bool(drawn == _measured(task))


def _measured(task: Any) -> str:
    return str(task.config.test_split or task.config.validation_split)


def drew_themselves(task: Any) -> int:
    """How many items of a task, whose prompts were built, are among the examples of their own prompt."""
    prompts = {instance.doc_id: (instance.args[0], task.doc_to_text(instance.doc)) for instance in task.instances}
    return sum(isinstance(own, str) and prompt.count(own) > 1 for prompt, own in prompts.values())


def _of_choices(task: Any, count: int) -> Iterator[Problem]:
    """Whether each item has one right choice among several."""
    if task.OUTPUT_TYPE != "multiple_choice" or task.config.process_results is not None:
        return
    metrics, single = set(task.aggregation()), 0
    for number, doc in enumerate(islice(task.eval_docs, count)):
        choices = task.doc_to_choice(doc)
        right = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
        answers = right if isinstance(right, list) else [right]
        if not any(answer in choices if isinstance(answer, str) else 0 <= answer < len(choices) for answer in answers):
            wanted = f"the number of one of the {len(choices)} choices as the answer of each item of {task.task_name}"
            remedy = f"measure another split, for some do not publish answers, or {CORRECT}"
            yield Problem(TASKS, wanted, f"{right!r} for item {number}", remedy)
            return
        if BY_LENGTH & metrics and not all(choices):
            wanted = f"choices of {task.task_name} with letters in them, by which {min(BY_LENGTH & metrics)} divides"
            yield Problem(TASKS, wanted, f"an empty one for item {number}", f"leave the metric out, or {CORRECT}")
            return
        single += len(choices) < 2
    if single == count and OF_CHOICES & metrics:
        wanted = f"items of {task.task_name} with several choices; every model has the only one right"
        yield Problem(TASKS, wanted, f"a single choice for all {count} items", CORRECT)


def of_model(task: Any, name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Iterator[Problem]:
    """What keeps a model from answering a task.

    Args:
        task: a task of lm-eval.
        name: of the model.
        model: its skeleton.
        tokenizer: its tokenizer.

    """
    generates = task.OUTPUT_TYPE == "generate_until"
    end, start = tokenizer.eos_token_id, tokenizer.bos_token_id
    if end is None and (generates or start is None):
        wanted = f"a tokenizer with an eos_token, {'which ends answers' if generates else 'or a bos_token'}"
        remedy = "name the token that ends a text as eos_token in the model's tokenizer_config.json"
        yield Problem("eval.models", wanted, f"{name} without one, for {task.task_name}", remedy)
    if generates:
        longest = normalize_gen_kwargs(task.config.generation_kwargs or {}, DEFAULT_ANSWER_TOKENS)["max_gen_toks"]
        positions = resolve_max_length(model.config, tokenizer)
        if longest >= positions:
            wanted = f"answers shorter than the {positions} positions of {name}"
            remedy = "leave the task out, or lower max_gen_toks in a copy of its file in eval.task_dir"
            yield Problem(TASKS, wanted, f"{task.task_name}, with answers of up to {longest} tokens", remedy)


def tokens(task: Any, limit: int | None) -> tuple[int, int]:
    """About how many tokens a model reads for a task, and writes at most: as the item does that was looked at."""
    count = len(task.eval_docs) if limit is None else min(limit, len(task.eval_docs))
    requests = [request.args for request in task.instances or ()]
    letters = sum(len(part) for arguments in requests for part in arguments if isinstance(part, str))
    written = 0
    if task.OUTPUT_TYPE == "generate_until":
        longest = normalize_gen_kwargs(task.config.generation_kwargs or {}, DEFAULT_ANSWER_TOKENS)["max_gen_toks"]
        written = longest * len(requests)
    return count * letters // LETTERS, count * written
