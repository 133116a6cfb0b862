"""lm-eval's harness: a model in memory, or vLLM's, answers the tasks; metrics and items come back."""

from collections import defaultdict
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lm_eval
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lors_cli import processes
from lors_cli.errors import LorsError
from lors_cli.evaluation import code_execution
from lors_cli.evaluation.benchmarks import Asked
from lors_cli.evaluation.metrics import headline

CPU_BATCH_SIZE = 8
CPU_LOGITS = 2**29  # numbers, 2 GiB in float32, at once for a batch of prompts of TYPICAL_LENGTH
TYPICAL_LENGTH = 1024
HASH_LENGTH = 16  # hexadecimal digits, of the 64 that a hash has

Item = dict[str, Any]


class SharedModel(HFLM):  # type: ignore[misc]
    """A model in memory that answers this process's share of the items.

    lm-eval shares items out itself, but takes a model in memory for the only one.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int | str) -> None:
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, max_batch_size=64)
        self._rank, self._world_size = processes.rank(), processes.count()

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensors of all processes, one after another."""
        return torch.stack([part.to(tensor.device) for part in processes.everyone(tensor.cpu())])

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """The objects of all processes; None for those that did not ask."""
        objects = processes.everyone(obj)
        return objects if self.rank == dst else None

    def barrier(self) -> None:
        """Wait for the others."""
        processes.wait()


def in_memory(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int | str) -> Any:
    """A transformers model for `Harness`.

    Args:
        model: in memory, on its device.
        tokenizer: its tokenizer.
        batch_size: prompts at once; "auto" takes what a GPU has room for, and on a CPU what should fit.

    """
    if batch_size == "auto" and model.device.type == "cpu":
        # lm-eval searches by running out of memory, which no CPU does in good time
        vocabulary = model.config.get_text_config().vocab_size
        batch_size = min(max(CPU_LOGITS // (vocabulary * TYPICAL_LENGTH), 1), CPU_BATCH_SIZE)
    return SharedModel(model, tokenizer, batch_size)


def by_vllm(directory: Path, dtype: str, seed: int, batch_size: int | str, *, trust_remote_code: bool) -> Any:
    """The model in `directory`, loaded and run by vLLM, for `Harness`."""
    from lm_eval.models.vllm_causallms import VLLM

    return VLLM(
        pretrained=str(directory),
        dtype=dtype,
        seed=seed,
        batch_size=batch_size,
        trust_remote_code=trust_remote_code,
    )


class Harness:
    """One model, asked one task after another.

    Args:
        manager: lm-eval's index of tasks.
        language_model: what answers; as `in_memory` or `by_vllm` give it.
        limit: items of each task.
        run_code: whether tasks may run what the model writes.

    """

    def __init__(self, manager: TaskManager, language_model: Any, limit: int | None, *, run_code: bool) -> None:
        self._manager, self._model, self._limit, self._run_code = manager, language_model, limit, run_code

    def run(self, asked: Asked) -> tuple[dict[str, Any], dict[str, list[Item]]]:
        """Ask the items of a task or a group; of several processes each asks its share.

        Returns:
            the metrics of each task and group ("acc", "acc_stderr", "n", "shots", "version", "metric", the headline)
            and the items of each task; both empty for all processes but the first.

        Raises:
            LorsError: lm-eval failed, or a benchmark's task does not give its metric.

        """
        try:
            with code_execution.permitted() if self._run_code else nullcontext():
                outcome = lm_eval.simple_evaluate(
                    model=self._model,
                    tasks=asked.objects,
                    task_manager=self._manager,
                    limit=self._limit,
                    log_samples=True,
                    confirm_run_unsafe_code=self._run_code,
                )
        except (torch.OutOfMemoryError, LorsError):
            raise
        except (RuntimeError, ValueError, KeyError, TypeError, OSError, AssertionError) as error:
            raise LorsError(f"{asked.name}: lm-eval failed: {str(error) or type(error).__name__}") from error
        if processes.rank() > 0:
            return {}, {}
        if outcome is None:
            raise LorsError(f"{asked.name}: lm-eval returned no result")
        return _metrics(outcome, asked), {name: _items(samples) for name, samples in outcome["samples"].items()}


def _metrics(outcome: dict[str, Any], asked: Asked) -> dict[str, Any]:
    entries = {}
    for name, values in {**outcome.get("groups", {}), **outcome["results"]}.items():
        # lm-eval's "acc,none" is "acc"; a filter other than none stays in the name
        entry: dict[str, Any] = {
            key.removesuffix(",none"): v for key, v in values.items() if isinstance(v, int | float) and "," in key
        }
        for key, part in (("n", "n-samples"), ("shots", "n-shot"), ("version", "versions")):
            value = outcome.get(part, {}).get(name)
            entry[key] = value.get("effective") if isinstance(value, dict) else value
        if entry["n"] is None:  # a group
            entry["n"] = values.get("sample_len")
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
    return entries


def _items(samples: list[dict[str, Any]]) -> list[Item]:
    """One line for each item, by its number, with the values of all filters and what tells it from others."""
    items: dict[int, Item] = defaultdict(dict)
    for sample in samples:
        item = items[sample["doc_id"]]
        item |= {
            "doc_id": sample["doc_id"],
            "doc": sample["doc_hash"][:HASH_LENGTH],
            "prompt": sample["prompt_hash"][:HASH_LENGTH],
        }
        suffix = "" if sample["filter"] == "none" else f",{sample['filter']}"
        item |= {f"{metric}{suffix}": _plain(sample[metric]) for metric in sample["metrics"]}
    return [items[number] for number in sorted(items)]


def _plain(value: Any) -> Any:
    """The value as JSON can hold it."""
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value if value is None or isinstance(value, str | int | float | bool) else float(value)
