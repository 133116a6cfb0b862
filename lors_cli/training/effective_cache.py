"""The effective weights of LoRS during a training: which are kept within a step, and a new rounding for each step."""

import logging
from collections.abc import Mapping
from typing import Any

import torch

from lors_cli.adapters.base import Adapter
from lors_cli.adapters.effective_cache import EffectiveCache
from lors_cli.adapters.lors import LoRS
from lors_cli.config.train import Train
from lors_cli.models import memory
from lors_cli.models.linears import by_block

log = logging.getLogger(__name__)

SPARE = 0.1  # the share of the unused memory that later steps may need
OPTIMIZER_BYTES = 8  # AdamW's moments of a trainable number, which are not there yet when memory is allotted


class TrainingCache:
    """Keeps effective weights within an optimiser step where `section` and the memory of `device` allow it.

    With ``merge_cache: auto`` the first micro-batch runs without: its peak shows what is left. As later ones may be
    longer, what it took is scaled to the longest that there can be. A sharded model keeps none: a process that has no
    room for the weights has none for the effective ones.
    """

    def __init__(
        self,
        section: Train,
        attached: Mapping[str, Adapter],
        device: torch.device,
        seed: int,
        *,
        sharded: bool = False,
    ) -> None:
        self._adapters = {name: adapter for name, adapter in attached.items() if isinstance(adapter, LoRS)}
        self._device, self._seed, self._section = device, seed, section.key
        self._cache: EffectiveCache | None = None
        self._passing = 0
        self._allotted = True
        self._budget = 0
        self._most_tokens = section.samples_per_forward * section.sequence_length
        if section.option("merge_cache") in (None, "off") or sharded or not self._adapters:
            return
        self._cache = EffectiveCache()
        self._cache.serve(self._adapters, next(iter(self._adapters.values())).dtype)
        self._allotted = section.option("merge_cache") == "full"
        if self._allotted:
            self._allot(self._cache.bytes)
        elif section.gradient_checkpointing:  # a block's backward follows its recomputation
            sizes = {name: slot.bytes for name, slot in self._cache.slots.items()}
            self._passing = max(sum(sizes[name] for name in names) for names in by_block(list(sizes)).values())

    def after_update(self) -> None:
        """The adapters have changed, which a fused optimiser does not tell."""
        if self._cache:
            self._cache.expire()

    def before_step(self, step: int) -> None:
        """Each stochastic rounding, if there is one, gets this step's seed."""
        for number, adapter in enumerate(self._adapters.values()):
            if adapter.rounding_seed is not None:
                adapter.rounding_seed.fill_(((self._seed * 1_000_003 + step) * 65_537 + number) % 2**32)

    def after_micro_batch(self, tokens: int) -> None:
        """Allot the cache its memory once the first micro-batch, of so many tokens, has shown what the rest needs."""
        if self._cache is None or self._allotted:
            return
        trained = sum(tensor.numel() for adapter in self._adapters.values() for tensor in adapter.tensors().values())
        longer = memory.peak_above_now(self._device) * (self._most_tokens / tokens - 1)
        free = (memory.never_used(self._device) - longer) * (1 - SPARE) - OPTIMIZER_BYTES * trained
        self._allot(max(int(free), 0))
        log.info(
            "%s: effective weights of %d of %d linears are kept within a step (all: %.2f GB)",
            *(self._section, len(self._cache.resident), len(self._adapters), self._cache.bytes / 1e9),
        )

    def _allot(self, budget: int) -> None:
        if self._cache:
            self._allotted, self._budget = True, min(budget, self._cache.bytes)
            self._cache.allot(budget, self._passing)

    def clear(self) -> None:
        """Forget the effective weights."""
        if self._cache:
            self._cache.clear()

    def state(self) -> dict[str, Any]:
        """For a checkpoint, as JSON: the counts so far, and what was allotted on which device."""
        if self._cache is None:
            return {}
        counts = {"made": self._cache.made, "hits": self._cache.hits}
        return {**counts, "budget": self._budget, "device": memory.device(self._device)}

    def go_on(self, state: dict[str, Any]) -> None:
        """Count on from a `state`; on the same kind of device its first micro-batch has shown what the rest needs."""
        if self._cache is None or not state:
            return
        self._cache.made, self._cache.hits = state["made"], state["hits"]
        fits = state["budget"] <= memory.never_used(self._device)
        if not self._allotted and fits and state["device"] == memory.device(self._device):
            self._allot(state["budget"])

    def facts(self) -> dict[str, Any]:
        """For the manifest: of how many linears they were kept, how often one was made, and used without being made."""
        if self._cache is None:
            return {}
        kept = len(self._cache.resident)
        return {"merge_cache": {"linears": kept, "merges": self._cache.made, "hits": self._cache.hits}}
