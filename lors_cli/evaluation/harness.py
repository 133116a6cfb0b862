"""lm-eval's harness: a model in memory, or vLLM's, answers the tasks; metrics and items come back."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from types import MappingProxyType
from typing import Any
from unittest.mock import patch

import lm_eval
import torch
from lm_eval import evaluator
from lm_eval.api.metrics import nanmean
from lm_eval.tasks import TaskManager

from lors_cli import processes
from lors_cli.errors import LorsError, UnmeasurableError
from lors_cli.evaluation import code_execution
from lors_cli.evaluation.answering import SharedModel, Watch
from lors_cli.evaluation.benchmarks import Asked
from lors_cli.evaluation.metrics import headline
from lors_cli.evaluation.task_check import NO_METRIC, drew_themselves, may_draw_itself

HASH_LENGTH = 16  # hexadecimal digits, of the 64 that a hash has
# After each task lm-eval asks pip, compilers and drivers for their versions, for seconds; the manifest has what counts.
NO_SURVEY = patch.object(evaluator, "add_env_info", lambda _storage: None, create=True)

Item = dict[str, Any]


class Harness:
    """One model, asked one task after another.

    Args:
        manager: lm-eval's index of tasks.
        language_model: what answers; as `in_memory` or `by_vllm` give it.
        limit: items of each task.
        run_code: whether tasks may run what the model writes.
        chat: what lm-eval is given of chat templates: "apply_chat_template" and "system_instruction".

    """

    def __init__(
        self,
        manager: TaskManager,
        language_model: Any,
        limit: int | None,
        *,
        run_code: bool,
        chat: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self._manager, self._model, self._limit, self._run_code = manager, language_model, limit, run_code
        self._chat = chat

    def run(self, asked: Asked) -> tuple[dict[str, Any], dict[str, list[Item]]]:
        """Ask the items of a task or a group; of several processes each asks its share.

        Returns:
            the metrics of each task and group ("acc", "acc_stderr", "n", "total", "shots", "version", "metric", the
            headline, and how many items were "truncated", "unfinished" or their "own_examples") and the items of each
            task; both empty for all processes but the first.

        Raises:
            UnmeasurableError: a score or a metric is not a finite number.
            LorsError: lm-eval failed, or a benchmark's task does not give its metric.

        """
        try:
            with code_execution.permitted() if self._run_code else nullcontext(), NO_SURVEY:
                outcome = lm_eval.simple_evaluate(
                    model=self._model,
                    tasks=asked.objects,
                    task_manager=self._manager,
                    limit=self._limit,
                    log_samples=True,
                    confirm_run_unsafe_code=self._run_code,
                    **self._chat,
                )
        except (torch.OutOfMemoryError, LorsError):
            raise
        except OverflowError as error:
            raise UnmeasurableError(
                f"{asked.name}: a metric is larger than a float can hold ({error});"
                " leave it out of metric_list in a copy of the task's file, as word_perplexity for texts without spaces"
            ) from error
        except Exception as error:  # code of tasks, which may raise whatever it likes
            raise LorsError(f"{asked.name}: lm-eval failed: {type(error).__name__}: {error}") from error
        own = {t.task_name: sum(processes.everyone(drew_themselves(t))) for t in asked.tasks() if may_draw_itself(t)}
        watch = self._model.watched() if isinstance(self._model, SharedModel) else None
        if processes.rank() > 0:
            return {}, {}
        if outcome is None:
            raise LorsError(f"{asked.name}: lm-eval returned no result")
        aggregations = {task.task_name: task.aggregation() for task in asked.tasks()}
        for name, samples in outcome["samples"].items():
            _check(name, samples, aggregations[name])
        metrics, cut = _metrics(outcome, asked), ""
        for name, number in own.items():
            metrics[name]["own_examples"] = number
        if watch:
            _count(metrics, outcome.get("group_subtasks", {}), watch)
            cut = f" cut for {self._model.max_length} positions"
        truncated = watch.truncated if watch else set()
        items = {
            name: _items(samples, {number: cut for task, number in truncated if task == name})
            for name, samples in outcome["samples"].items()
        }
        return metrics, items


def _check(task: str, samples: list[dict[str, Any]], aggregation: dict[str, Any]) -> None:
    """Refuse scores and metrics of items that are not finite; a metric that leaves such items out says so itself."""
    for sample in samples:
        values = {"the answer": sample["resps"]}
        values |= {f"the metric {m}": sample[m] for m in sample["metrics"] if aggregation.get(m) is not nanmean}
        for what, value in values.items():
            if any(not math.isfinite(number) for number in _numbers(value)):
                raise UnmeasurableError(f"{task}, item {sample['doc_id']}: {what} is not finite: {value}")


def _numbers(value: Any) -> Iterator[float]:
    """The numbers in a value, which may hold others."""
    value = _plain(value)
    if isinstance(value, list):
        for part in value:
            yield from _numbers(part)
    elif isinstance(value, int | float):
        yield value


def _metrics(outcome: dict[str, Any], asked: Asked) -> dict[str, Any]:
    entries = {}
    for name, values in {**outcome.get("groups", {}), **outcome["results"]}.items():
        # lm-eval's "acc,none" is "acc"; a filter other than none stays in the name
        named = {key.removesuffix(",none"): value for key, value in values.items() if "," in key}
        named = {key: value for key, value in named.items() if not key.startswith(NO_METRIC)}
        entry: dict[str, Any] = {key: _metric(name, key, value) for key, value in named.items()}
        for key, part in (("n", "n-samples"), ("shots", "n-shot"), ("version", "versions")):
            value = outcome.get(part, {}).get(name)
            entry[key] = value.get("effective") if isinstance(value, dict) else value
        if entry["n"] is None:  # a group
            entry["n"] = values.get("sample_len")
        else:
            entry["total"] = outcome["n-samples"][name]["original"]
        entry["metric"] = headline(entry)
        benchmark = asked.benchmarks.get(name)
        if benchmark and entry["metric"]:
            if benchmark.metric not in entry:
                raise LorsError(f"{name} does not give {benchmark.metric}, which is the metric of {benchmark.task}")
            entry |= {"benchmark": benchmark.task, "metric": benchmark.metric}
        entries[name] = entry
    for group, children in outcome.get("group_subtasks", {}).items():
        if entries[group]["metric"] is None:  # it only holds its tasks together
            del entries[group]
            continue
        for child in entries.keys() & set(children):
            entries[child]["group"] = group
    without = [name for name, entry in entries.items() if entry["metric"] is None]
    if without:
        raise UnmeasurableError(
            f"{without[0]} gives no number: its metrics are {sorted(outcome['results'][without[0]])}"
        )
    return entries


def _metric(task: str, key: str, value: Any) -> float | None:
    """A metric, which has to be a finite number; None for a standard error that there is not."""
    try:
        number = float(value)
    except (TypeError, ValueError):  # lm-eval's "N/A" for the standard error of a single item
        number = math.nan
    if math.isfinite(number):
        return number
    if "_stderr" in key:
        return None
    raise UnmeasurableError(f"{task}: the metric {key} is no finite number: {value}")


def _count(metrics: dict[str, Any], children: dict[str, list[str]], watch: Watch) -> None:
    """Count in the metrics of each task and group the items whose prompt or answer was cut."""

    def leaves(name: str) -> set[str]:
        return set().union(*map(leaves, children[name])) if name in children else {name}

    for name, entry in metrics.items():
        tasks = leaves(name)
        entry["truncated"] = sum(task in tasks for task, _ in watch.truncated)
        if tasks & watch.generating:
            entry["unfinished"] = sum(task in tasks for task, _ in watch.unfinished)


def _items(samples: list[dict[str, Any]], cut: dict[int, str]) -> list[Item]:
    """One line for each item, by its number, with the values of all filters and what tells it from others.

    A prompt that was cut is named otherwise, so that no model is compared with one that read all of it.
    """
    items: dict[int, Item] = defaultdict(dict)
    for sample in samples:
        number = sample["doc_id"]
        item = items[number]
        item |= {
            "doc_id": number,
            "doc": sample["doc_hash"][:HASH_LENGTH],
            "prompt": sample["prompt_hash"][:HASH_LENGTH] + cut.get(number, ""),
        }
        suffix = "" if sample["filter"] == "none" else f",{sample['filter']}"
        item |= {f"{metric}{suffix}": _finite(_plain(sample[metric])) for metric in sample["metrics"]}
    return [items[number] for number in sorted(items)]


def _plain(value: Any) -> Any:
    """The value in lists, texts and Python's numbers."""
    if hasattr(value, "tolist"):  # of numpy or torch
        value = value.tolist()
    if isinstance(value, list | tuple | set):
        return [_plain(part) for part in value]
    if isinstance(value, dict):
        return [_plain(part) for part in value.values()]
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _finite(value: Any) -> Any:
    """The value as JSON can hold it: numbers that their metric leaves out, because they are not finite, as null."""
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
