"""The start of the adapters from the training data: which samples, which passes, and their progress."""

import logging
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from lors_cli import console, processes
from lors_cli.adapters.base import Adapter, LowRankAdapter
from lors_cli.adapters.initialize import (
    SWEEPS,
    initialize_from_gradient,
    initialize_from_gradient_svd,
    initialize_from_inputs,
)
from lors_cli.data.example import Example
from lors_cli.errors import LorsError
from lors_cli.models.linears import by_block
from lors_cli.training.batches import micro_batches
from lors_cli.training.prepare import Training

log = logging.getLogger(__name__)


def initialize(training: Training, model: nn.Module, attached: dict[str, Adapter], samples: list[Example]) -> None:
    """Set lora_A as the config asks, from `samples` that several processes share.

    Args:
        training: what was checked.
        model: gives a loss.
        attached: its adapters.
        samples: of the first optimiser steps, the same in all processes.

    Raises:
        LorsError: what it would start from is zero or not finite.

    """
    section = training.section
    if section.resolved_init == "random":
        return
    batches = micro_batches(samples, training.batching.per_forward, training.data.padding)
    adapters = cast(dict[str, LowRankAdapter], attached)
    blocks = [{name: adapters[name] for name in names} for names in by_block(list(adapters)).values()]
    passes = {"gradient": 2 * SWEEPS, "gradient_svd": len(blocks), "eva": SWEEPS}[section.resolved_init]
    log.info("%s: lora_A starts from %d samples (init: %s)", section.key, len(samples), section.resolved_init)

    with console.progress(f"{section.key}: initialising, pass", passes * len(batches)) as advance:
        run = _Passes(model, batches, len(batches) * processes.count(), training.device, advance)
        model.train(section.resolved_init != "eva")
        try:
            if section.resolved_init == "gradient":
                initialize_from_gradient(adapters, run.backward, add_up=processes.add_up)
            elif section.resolved_init == "gradient_svd":
                initialize_from_gradient_svd(blocks, run.backward, add_up=processes.add_up)
            else:
                initialize_from_inputs(adapters, run.forward, tokens=run.tokens, add_up=processes.add_up)
        except LorsError as error:
            raise LorsError(f"{error}, or use {section.key}.init: random") from None
    for adapter in attached.values():  # decompositions of other machines may differ in a sign
        for tensor in adapter.tensors().values():
            processes.send_from(tensor.data, 0)


class _Passes:
    """Passes of `model` over this process's `batches`, `count` of all processes."""

    def __init__(
        self,
        model: nn.Module,
        batches: list[dict[str, Tensor]],
        count: int,
        device: torch.device,
        advance: Callable[[], None],
    ) -> None:
        self._model, self._batches, self._count, self._advance = model, batches, count, advance
        self._device = device
        self._mask: Tensor | None = None

    def backward(self) -> None:
        """Forward and backward; the gradient is that of the mean over the batches."""
        for batch in self._on_device():
            (self._model(**batch)["loss"] / self._count).backward()
            self._advance()

    def forward(self) -> None:
        """Forward only."""
        for batch in self._on_device():
            mask = batch.get("attention_mask")
            self._mask = None if mask is None else mask.bool()
            self._model(**batch)
            self._advance()

    def tokens(self, x: Tensor) -> Tensor:
        """The states x (..., C) of what is not padding in the batch at hand, (tokens, C)."""
        x = x.reshape(-1, x.shape[-1])
        return x if self._mask is None else x[self._mask.reshape(-1)]

    def _on_device(self) -> Any:
        return ({key: value.to(self._device) for key, value in batch.items()} for batch in self._batches)
