"""FSDP2 for the frozen weights: each process holds a part of every block, and all of it only while it computes."""

import os
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from lors_cli import processes
from lors_cli.config.train import Train
from lors_cli.models.linears import find_blocks

ACCELERATE = "ACCELERATE_USE_FSDP"  # how ``accelerate launch --use_fsdp`` asks for it


def is_sharded(section: Train) -> bool:
    """Whether processes hold parts of the weights."""
    asked = os.environ.get(ACCELERATE, "").lower() in ("1", "true")
    return processes.count() > 1 and (asked or section.parallel == "fsdp")


def shard(model: Any, device: torch.device, root: nn.Module | None = None) -> None:
    """Shard the weights of `model` over all processes, block by block.

    The adapters stay whole in each process, on `device`: they are a thousandth of the model, their start replaces them,
    and so what is saved does not depend on how many processes there are.

    Args:
        model: a causal language model with frozen weights on the host or on `device`.
        device: where this process computes.
        root: what is called and holds `model`; what is outside of the blocks is then sharded too, else it stays whole.

    """
    os.environ.pop(ACCELERATE, None)  # accelerate would shard once more
    mesh = init_device_mesh(device.type, (processes.count(),))
    whole = {parameter for parameter in model.parameters() if parameter.requires_grad}
    for block in find_blocks(model)[1]:
        fully_shard(block, mesh=mesh, ignored_params=whole, reshard_after_forward=True)
    if root is not None:
        fully_shard(root, mesh=mesh, ignored_params=whole)
    # adapters are not sharded, and without a root neither is what is outside of the blocks
    for tensor in (*model.parameters(), *model.buffers()):
        if not isinstance(tensor, DTensor):
            tensor.data = tensor.data.to(device)
