"""Several processes that do one job together, as torchrun and ``accelerate launch`` start them; alone, all no-ops.

The command line asks here who it is, so torch is imported only where processes talk.
"""

import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

PATIENCE = timedelta(minutes=30)  # how long the others wait; the first one's digest of a large model takes less


def count() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this is. Number 0 writes, the others only compute."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Which of those on this machine this is: the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_count() -> int:
    """How many processes share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", count()))


def start() -> None:
    """Join the group, once. GPU tensors travel by NCCL, the others by Gloo."""
    if count() > 1:
        import torch
        import torch.distributed as dist

        if dist.is_initialized():
            return
        if torch.cuda.is_available() and local_rank() < torch.cuda.device_count():
            torch.cuda.set_device(local_rank())
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)


def stop() -> None:
    """Leave the group, when the work is done; after a failure NCCL would wait here for those that failed."""
    if count() > 1:
        import torch.distributed as dist

        dist.destroy_process_group()


def add_up(tensor: "Tensor") -> "Tensor":
    """Replace `tensor` by its sum over all processes."""
    if count() > 1:
        import torch.distributed as dist

        dist.all_reduce(tensor)
    return tensor


def send_from(tensor: "Tensor", owner: int) -> "Tensor":
    """Replace `tensor` by the one that process `owner` has."""
    if count() > 1:
        import torch.distributed as dist

        dist.broadcast(tensor, owner)
    return tensor


def agree(value: Any, owner: int = 0) -> Any:
    """What process `owner` passed."""
    if count() == 1:
        return value
    import torch.distributed as dist

    box = [value]
    dist.broadcast_object_list(box, owner)
    return box[0]


def everyone(value: Any) -> list[Any]:
    """What each process passed, in the order of their numbers."""
    if count() == 1:
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * count()
    dist.all_gather_object(values, value)
    return values


def wait() -> None:
    """Wait until all processes are here."""
    if count() > 1:
        import torch.distributed as dist

        dist.barrier()
