"""Effective weights kept from one use to the next, so that LoRS makes each once per optimiser step.

An effective weight is good until one of the tensors that it was made from changes. Within an accumulation window none
does, so every micro-batch's forward and backward can use the one that the first forward made. Where there is no memory
for that, activation checkpointing still lets each block's backward use what its recomputation has just made.

Custom operators take no objects, so a linear names its slot by a number.
"""

from collections.abc import Callable, Mapping
from itertools import count
from typing import Any, Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor

Make = Callable[[Tensor | None], Tensor]

NONE = -1  # the number of no slot
_slots: "WeakValueDictionary[int, Slot]" = WeakValueDictionary()
_numbers = count()


class Slot:
    """Where the effective weight of one linear may stay.

    `resident`: it always does; `made`: the last use had to make it.
    """

    def __init__(self, cache: "EffectiveCache", size: int) -> None:
        self.cache, self.bytes = cache, size
        self.resident, self.made = False, True
        self._operands: tuple[Tensor, ...] = ()  # held, so that no other tensor can take their place in memory
        self._key: Any = None
        self.weight: Tensor | None = None
        self.number = next(_numbers)
        _slots[self.number] = self

    def use(self, operands: tuple[Tensor, ...], scale: float, dtype: torch.dtype, make: Make) -> Tensor:
        """The effective weight of `operands`: the kept one if they are as they were when it was made."""
        key = (scale, dtype, *((t.data_ptr(), t._version, t.shape) for t in operands))
        self.made = self.weight is None or key != self._key
        if self.weight is None or self.made:
            self.weight = make(self.weight)
            self._key, self._operands = key, operands
        return self.weight

    def expire(self) -> None:
        """Make it anew at the next use."""
        self._key = None

    def clear(self) -> None:
        """Give the memory back."""
        self.weight, self._key, self._operands = None, None, ()


class Served(Protocol):
    """An adapter that looks for its effective weight in a slot."""

    linear: Any
    slot: Slot | None


class EffectiveCache:
    """The effective weights of one model.

    Changes of the adapters are seen by PyTorch's version counters, which in-place operations move. What moves none
    needs `expire`: PyTorch's fused optimisers, writes through ``.data``, sharded parameters that are gathered anew
    (FSDP2). A captured CUDA graph would replay a use without looking.

    Attributes:
        made: how often a weight was made for linears that have a slot.
        hits: how often a kept one was used instead.

    """

    def __init__(self) -> None:
        self.slots: dict[str, Slot] = {}
        self.made = self.hits = 0
        self._passing: dict[int, Slot] = {}  # not resident but kept for a moment, the oldest first
        self._room = 0

    def serve(self, adapters: Mapping[str, Served], dtype: torch.dtype) -> None:
        """Give each adapter a slot; `dtype` is that of its inputs. Nothing is kept before `allot` is called."""
        for name, adapter in adapters.items():
            size = adapter.linear.out_features * adapter.linear.in_features * dtype.itemsize
            self.slots[name] = adapter.slot = Slot(self, size)

    @property
    def bytes(self) -> int:
        """The bytes that it takes to keep every effective weight."""
        return sum(slot.bytes for slot in self.slots.values())

    @property
    def resident(self) -> list[str]:
        """The linears whose effective weights stay."""
        return [name for name, slot in self.slots.items() if slot.resident]

    def allot(self, budget: int, passing: int = 0) -> None:
        """Choose what is kept: as many effective weights as fit, the largest first.

        Args:
            budget: bytes for effective weights.
            passing: of these, if not all of them fit, bytes for weights that stay only until others push them out or
                their backward has used them. With activation checkpointing this should hold those of one block.

        """
        self.clear()
        self._room = 0 if self.bytes <= budget else min(passing, budget)
        left = budget - self._room
        for slot in sorted(self.slots.values(), key=lambda slot: -slot.bytes):
            slot.resident = slot.bytes <= left
            left -= slot.bytes if slot.resident else 0

    def expire(self) -> None:
        """Make all anew at their next use, whatever the version counters say; the memory is kept for that."""
        for slot in self.slots.values():
            slot.expire()

    def clear(self) -> None:
        """Forget every effective weight."""
        self._passing.clear()
        for slot in self.slots.values():
            slot.clear()

    def admit(self, slot: Slot) -> bool:
        """Whether the slot's weight is to be kept for now; older passing ones make room."""
        if slot.resident or slot.bytes > self._room:
            return slot.resident
        self._passing[slot.number] = self._passing.pop(slot.number, slot)
        while sum(kept.bytes for kept in self._passing.values()) > self._room:
            self._passing.pop(next(iter(self._passing))).clear()
        return True

    def dismiss(self, slot: Slot) -> None:
        """Its backward has used the slot's weight: give it up unless it is resident."""
        if self._passing.pop(slot.number, None):
            slot.clear()


def use(
    number: int,
    operands: tuple[Tensor, ...],
    scale: float,
    dtype: torch.dtype,
    make: Make,
    *,
    last: bool = False,
) -> Tensor | None:
    """The effective weight from slot `number`, or None if none is kept there.

    Args:
        number: a slot's, or `NONE`.
        operands: all tensors that the effective weight depends on.
        scale: of the update.
        dtype: of the effective weight.
        make: makes it from the operands, in the place of an older one if that is given.
        last: whether this is a backward, after which a weight that does not stay is not needed again.

    """
    slot = _slots.get(number)
    if slot is None:
        return None
    if not slot.cache.admit(slot):
        slot.made = True
        slot.cache.made += 1
        return None
    weight = slot.use(operands, scale, dtype, make)
    slot.cache.made += slot.made
    slot.cache.hits += not slot.made
    if last:
        slot.cache.dismiss(slot)
    return weight


def last_use_made(number: int) -> bool:
    """Whether the last use of slot `number` had to make the weight; without a slot every use does."""
    slot = _slots.get(number)
    return slot is None or slot.made
