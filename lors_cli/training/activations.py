"""How many bytes the activations of a training take, counted on tensors that have shapes and no content."""

import logging
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from lors_cli.adapters.replace import replace_linears
from lors_cli.adapters.vectors import train_vectors
from lors_cli.config.train import Train
from lors_cli.data import once
from lors_cli.models import load, structure, vectors
from lors_cli.models.linears import decoder, find_blocks
from lors_cli.models.undrawn import Undrawn

log = logging.getLogger(__name__)


def saved_bytes(skeleton: Any, section: Train, names: list[str], dtype: str) -> int | None:
    """What one micro-batch of full length saves for backward, without the loss; None where it cannot be counted.

    Args:
        skeleton: the model without weights; it is not changed.
        section: how it will be trained.
        names: of the linears that are adapted.
        dtype: of the frozen weights.

    """
    size = (section.samples_per_forward, section.sequence_length)
    shape = skeleton.config.to_json_string(), structure.of(skeleton), dtype
    options = section.computed, section.rank, section.alpha, section.base, section.also, section.gradient_checkpointing
    key = ("activations", shape, names, options, size)
    return once.read(key, lambda: _saved_bytes(skeleton, section, names, dtype, size))


def _saved_bytes(skeleton: Any, section: Train, names: list[str], dtype: str, size: tuple[int, int]) -> int | None:
    try:
        with FakeTensorMode():
            with Undrawn():
                model = type(skeleton)._from_config(skeleton.config, dtype=load.DTYPES[dtype])
            if smaller := structure.of(skeleton):
                structure.shrink(model, smaller)
            # adapters on codes compute again what would be of a weight's size
            again: dict[str, Any] = {"adapter_checkpointing": True} if section.base == "int4" else {}
            replace_linears(model, names, section.computed.adapter, rank=section.rank, alpha=section.alpha, **again)
            train_vectors(model, vectors.find(model, section.also, names, section.key))
            model.train()
            whole = _saved_by_forward(model, size)
            if not section.gradient_checkpointing:
                return whole
            # each block keeps its input, and one block at a time everything
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            return _saved_by_forward(model, size) + whole // len(find_blocks(model)[1])
    except Exception as error:  # code that needs content, an operator without a rule for shapes
        log.debug("%s: cannot count the activations of %s: %s", section.key, type(skeleton).__name__, error)
        return None


def _saved_by_forward(model: Any, size: tuple[int, int]) -> int:
    """Bytes that the backbone's forward saves for backward, apart from parameters."""
    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    saved: dict[int, Any] = {}  # the storages are held, so that none takes another's place

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = storage
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        decoder(model)(input_ids=torch.zeros(size, dtype=torch.long), use_cache=False)
    return sum(storage.nbytes() for storage in saved.values())
