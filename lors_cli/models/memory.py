"""How much memory is free, and how much was used at most.

What a stage will need is estimated in `training.memory_estimate` and `sequential.memory_estimate`.
"""

import resource
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import torch

from lors_cli import processes

CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def free_device(device: torch.device) -> int:
    """Free bytes on a GPU; 0 for anything else."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def device(device: torch.device) -> str:
    """What a device is, and the bytes of its memory; for anything but a GPU this process's share of the host's."""
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        return f"{found.name}, {found.total_memory}"
    return f"{device.type}, {psutil.virtual_memory().total // processes.local_count()}"


def free_host() -> int:
    """What the machine has free, or its container or SLURM job may still take, for each process on it."""
    free: int = psutil.virtual_memory().available
    for path in map(Path, CGROUP_LIMITS):
        if path.is_file() and (text := path.read_text().strip()).isdigit():
            free = min(free, int(text) - psutil.Process().memory_info().rss * processes.local_count())
    return free // processes.local_count()


def free(device: torch.device) -> int:
    """What the device has free; for anything but a GPU the host."""
    return free_device(device) or free_host()


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
    host: int = peaks()["host_bytes"] - now
    return host


def peak() -> int:
    """The highest use so far: of the GPU's memory if there is a GPU, otherwise of this process on the host."""
    bytes_used = peaks()
    return bytes_used.get("gpu_bytes", bytes_used["host_bytes"])


def peaks() -> dict[str, int]:
    """Peak bytes since `forget_peaks`: of this process on the host, and of CUDA allocations."""
    bytes_used = {"host_bytes": _host_peak()}
    if torch.cuda.is_available():
        bytes_used["gpu_bytes"] = torch.cuda.max_memory_allocated()
    return bytes_used


def _host_peak() -> int:
    """The system's own figure; ru_maxrss also holds that of the process that started this one."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_peaks() -> None:
    """Let the peaks begin anew. If the system does not allow that, the host's is the one of the whole process."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak of resident memory
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def ran_out(error: BaseException) -> bool:
    """Whether there was too little memory; on a CPU torch does not have an exception of its own for that."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
