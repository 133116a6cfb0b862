"""How much memory is free, and how much more a training may use."""

from pathlib import Path

import psutil
import torch

from lors_cli import processes
from lors_cli.artifacts import manifest

CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def free_device(device: torch.device) -> int:
    """Free bytes on a GPU; 0 for anything else."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def free_host() -> int:
    """What the machine has free, or its container or SLURM job may still take, for each process on it."""
    free: int = psutil.virtual_memory().available
    for path in map(Path, CGROUP_LIMITS):
        if path.is_file() and (text := path.read_text().strip()).isdigit():
            free = min(free, int(text) - psutil.Process().memory_info().rss * processes.local_count())
    return free // processes.local_count()


def never_used(device: torch.device) -> int:
    """Bytes of the device's memory, or of the host's, that would still be free at the highest peak so far."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.max_memory_allocated(device)
        return free_device(device) + held
    return free_host() - peak_above_now(device)


def peak_above_now(device: torch.device) -> int:
    """How many bytes more than now were in use at the highest peak so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) - torch.cuda.memory_allocated(device)
    now: int = psutil.Process().memory_info().rss
    host: int = manifest.peak_memory()["host_bytes"] - now
    return host


def peak() -> int:
    """The highest use so far: of the GPU's memory where there is one, else of this process on the host."""
    peaks = manifest.peak_memory()
    return peaks.get("gpu_bytes", peaks["host_bytes"])
