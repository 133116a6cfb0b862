"""What answers lm-eval's prompts: a model in memory, watched while it does, or vLLM.

Watched is what would make a number other than a measurement: scores that are not finite, prompts that were cut because
the model has too few positions for them, and answers that were cut because the model did not end them.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from transformers import LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from lors_cli import console, processes
from lors_cli.errors import UnmeasurableError
from lors_cli.evaluation.generating import Finite
from lors_cli.evaluation.perplexity import NOT_FINITE

CPU_BATCH_SIZE = 8
CPU_LOGITS = 2**29  # numbers, 2 GiB in float32, at once for a batch of prompts of TYPICAL_LENGTH
TYPICAL_LENGTH = 1024

ItemKey = tuple[str, int]  # a task and the number of an item of it


def _nothing() -> None:
    pass


@dataclass
class Watch:
    """What happened to prompts and answers. lm-eval tells it each score as soon as that is there, as it would a cache.

    Attributes:
        truncated: the items whose prompt was cut.
        unfinished: the items with an answer that was cut.
        generating: the tasks whose answers are texts.
        advance: called for each answer.

    """

    truncated: set[ItemKey] = field(default_factory=set)
    unfinished: set[ItemKey] = field(default_factory=set)
    generating: set[str] = field(default_factory=set)
    advance: Callable[..., None] = _nothing
    _items: dict[tuple[str, ...], set[ItemKey]] = field(default_factory=lambda: defaultdict(set))

    def expect(self, requests: list[Any]) -> None:
        """Remember which items the next requests of lm-eval are of; equal texts may be of several."""
        self._items.clear()
        for request in requests:
            self._items[_texts(request.args)].add((str(request.task_name), int(request.doc_id)))

    def items(self, *texts: str) -> set[ItemKey]:
        """The items whose request has these texts."""
        return self._items[texts]

    def fail(self, reason: str, *texts: str) -> None:
        """Stop the evaluation.

        Raises:
            UnmeasurableError: always.

        """
        task, number = min(self.items(*texts), default=("a task", 0))
        raise UnmeasurableError(f"{task}, item {number}: {reason}")

    def add_partial(self, _kind: str, request: Any, answer: Any) -> None:
        """Look at an answer: a log-likelihood, one with a flag, or a text."""
        self.advance()
        score = answer[0] if isinstance(answer, tuple) else answer
        if not isinstance(score, str) and not math.isfinite(score):
            self.fail(f"the log-likelihood is {score}; {NOT_FINITE}", *_texts(request))


def _texts(arguments: Any) -> tuple[str, ...]:
    return tuple(part for part in arguments if isinstance(part, str))


class SharedModel(HFLM):  # type: ignore[misc]
    """A model in memory that answers this process's share of the items.

    lm-eval shares items out itself, but takes a model in memory for the only one.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int | str, label: str = "eval"
    ) -> None:
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, max_batch_size=64)
        self._label = label
        self._rank, self._world_size = processes.rank(), processes.count()
        self._contexts: list[str] = []  # of the batch that is being answered
        self.watch = self.cache_hook = Watch()

    def watched(self) -> Watch:
        """What happened in all processes since this was asked last."""
        watches = processes.everyone(self.watch)
        self.watch = self.cache_hook = Watch()
        truncated, unfinished = (
            set().union(*(getattr(w, name) for w in watches)) for name in ("truncated", "unfinished")
        )
        return Watch(truncated, unfinished, set().union(*(w.generating for w in watches)))

    def all_gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all processes, one after another."""
        return torch.stack([part.to(tensor.device) for part in processes.everyone(tensor.cpu())])

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """The objects of all processes; None for those that did not ask."""
        objects = processes.everyone(obj)
        return objects if self.rank == dst else None

    def barrier(self) -> None:
        """Wait for the others."""
        processes.wait()

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """The log-likelihood of each continuation, and whether it is the greedy one."""
        self.watch.expect(requests)
        for request in requests:
            if not any(request.args):
                self.watch.fail("there is no text to score", *request.args)
        with self._progress(requests):
            answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return answers

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each text, over windows that are as long as the model's positions."""
        self.watch.expect(requests)
        if not any(request.args[0] for request in requests):
            self.watch.fail("there is no text to score", *requests[0].args)
        with self._progress(requests):
            answers: list[float] = super().loglikelihood_rolling(requests, disable_tqdm=True)
        return answers

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """The continuations that the model writes."""
        self.watch.expect(requests)
        with self._progress(requests):
            answers: list[str] = super().generate_until(requests, disable_tqdm=True)
        return answers

    @contextmanager
    def _progress(self, requests: list[Any]) -> Iterator[None]:
        """Show how many of the requests are answered, in the place of lm-eval's own bar."""
        tasks = ", ".join(dict.fromkeys(str(request.task_name) for request in requests))
        with console.progress(self._label, len(requests)) as advance:
            advance(tasks, steps=0)
            self.watch.advance = advance
            try:
                yield
            finally:
                self.watch.advance = _nothing

    def _loglikelihood_tokens(self, requests: list[Any], *args: Any, **options: Any) -> list[tuple[float, bool]]:
        for texts, context, continuation in requests:
            if texts is None:  # a window of a text, which fits
                continue
            if not context or not continuation:
                self.watch.fail("there is no token to score, or none before it", *texts)
            if len(continuation) > self.max_length:
                got = f"a continuation of {len(continuation)} tokens, for a model of {self.max_length} positions"
                self.watch.fail(got, *texts)
            if len(context) + len(continuation) > self.max_length + 1:  # the last token is predicted, not read
                self.watch.truncated |= self.watch.items(*texts)
        answers: list[tuple[float, bool]] = super()._loglikelihood_tokens(requests, *args, **options)
        return answers

    def tok_batch_encode(
        self, strings: list[str], padding_side: str = "left", left_truncate_len: int | None = None, **options: Any
    ) -> tuple[Tensor, Tensor]:
        """The tokens of prompts and their mask, (prompts, tokens), without the beginning of those that are too long."""
        self._contexts = strings
        tokens, mask = super().tok_batch_encode(strings, padding_side, **options)
        if left_truncate_len:
            for string, length in zip(strings, mask.sum(1).tolist(), strict=True):
                if length > left_truncate_len:
                    self.watch.truncated |= self.watch.items(string)
            tokens, mask = tokens[:, -left_truncate_len:], mask[:, -left_truncate_len:]
        return tokens, mask

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **options: Any) -> Tensor:
        checked = LogitsProcessorList([Finite(self._not_finite)])
        made: Tensor = super()._model_generate(context, max_length, stop, logits_processor=checked, **options)
        ends = self.model.generation_config.eos_token_id
        ends = {self.eot_token_id, *(ends if isinstance(ends, list) else [ends])}
        for string, tokens in zip(self._contexts, made[:, context.shape[1] :].tolist(), strict=True):
            items = self.watch.items(string)
            self.watch.generating |= {task for task, _ in items}
            text = self.tok_decode(tokens, skip_special_tokens=False)
            if (
                made.shape[1] >= max_length
                and not ends & set(tokens)
                and not any(word in text for word in stop if word)
            ):
                self.watch.unfinished |= items
        return made

    def _not_finite(self, row: int, rows: int) -> None:
        context = self._contexts[row * len(self._contexts) // rows]  # several beams for each
        self.watch.fail(f"the logits of an answer are not finite; {NOT_FINITE}", context)


def in_memory(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int | str, label: str = "eval"
) -> SharedModel:
    """A transformers model for `Harness`.

    Args:
        model: in memory, on its device.
        tokenizer: its tokenizer.
        batch_size: prompts at once; "auto" takes what a GPU has room for, and on a CPU what should fit.
        label: what the progress is called.

    """
    if batch_size == "auto" and model.device.type == "cpu":
        # lm-eval searches by running out of memory, which no CPU does in good time
        vocabulary = model.config.get_text_config().vocab_size
        batch_size = min(max(CPU_LOGITS // (vocabulary * TYPICAL_LENGTH), 1), CPU_BATCH_SIZE)
    return SharedModel(model, tokenizer, batch_size, label)


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
