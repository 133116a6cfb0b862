"""The start of the adapters from the training data: which samples, which passes, and their progress."""

import logging
import random
from collections.abc import Callable
from typing import Any, cast

from torch import Tensor

from lors_cli import console, processes
from lors_cli.adapters import Adapter, LowRankAdapter
from lors_cli.adapters.initialize import (
    SWEEPS,
    initialize_from_gradient,
    initialize_from_gradient_svd,
    initialize_from_inputs,
)
from lors_cli.config.schema import Train
from lors_cli.data.instructions import Example
from lors_cli.models.linears import by_block
from lors_cli.training.collate import collate

log = logging.getLogger(__name__)


def initialize(
    model: Any, attached: dict[str, Adapter], section: Train, examples: list[Example], padding: int, seed: int
) -> None:
    """Set lora_A as `section` asks, from one optimiser step's samples drawn from `examples`.

    Raises:
        LorsError: what it would start from is zero or not finite.

    """
    if section.resolved_init == "random":
        return
    count = min(section.samples_per_step, len(examples))
    chosen = random.Random(seed).sample(examples, count)
    size = section.samples_per_forward
    batches = [collate(chosen[start : start + size], padding) for start in range(0, count, size)]
    adapters = cast(dict[str, LowRankAdapter], attached)
    blocks = [{name: adapters[name] for name in names} for names in by_block(list(adapters)).values()]
    passes = {"gradient": 2 * SWEEPS, "gradient_svd": len(blocks), "eva": SWEEPS}[section.resolved_init]
    log.info("train: lora_A starts from %d samples (init: %s)", count, section.resolved_init)

    with console.progress("train: initialising, pass", passes * len(batches)) as advance:
        run = _Passes(model, batches, advance)
        if section.resolved_init == "gradient":
            model.train()
            initialize_from_gradient(adapters, run.backward, add_up=processes.add_up)
        elif section.resolved_init == "gradient_svd":
            model.train()
            initialize_from_gradient_svd(blocks, run.backward, add_up=processes.add_up)
        else:
            model.eval()
            initialize_from_inputs(adapters, run.forward, tokens=run.tokens, add_up=processes.add_up)


class _Passes:
    """Passes of `model` over all `batches`."""

    def __init__(self, model: Any, batches: list[dict[str, Tensor]], advance: Callable[[], None]) -> None:
        self._model, self._batches, self._advance = model, batches, advance
        self._mask: Tensor | None = None

    def backward(self) -> None:
        """Forward and backward; the gradient is that of the mean over the batches."""
        for batch in self._on_device():
            (self._model(**batch).loss / len(self._batches)).backward()
            self._advance()

    def forward(self) -> None:
        """Forward only."""
        for batch in self._on_device():
            mask = batch.get("attention_mask")
            self._mask = None if mask is None else mask.bool()
            self._model(**{key: value for key, value in batch.items() if key != "labels"}, logits_to_keep=1)
            self._advance()

    def tokens(self, x: Tensor) -> Tensor:
        """The states x (..., C) of what is not padding in the batch at hand, (tokens, C)."""
        x = x.reshape(-1, x.shape[-1])
        return x if self._mask is None else x[self._mask.reshape(-1)]

    def _on_device(self) -> Any:
        return ({key: value.to(self._model.device) for key, value in batch.items()} for batch in self._batches)
