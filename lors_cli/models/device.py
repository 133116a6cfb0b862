"""The device that a stage computes on."""

import torch

from lors_cli import processes
from lors_cli.errors import request_error


def pick_device(name: str) -> torch.device:
    """The device that `name` means; "auto" is CUDA if there is a GPU, otherwise MPS, otherwise the CPU.

    Of several processes on a machine each takes the GPU of its number.

    Raises:
        RequestError: there is no such device, or all processes would take the same.

    """
    number = processes.local_rank()
    if ":" in name and processes.count() > 1:
        remedy = "use device: cuda, and CUDA_VISIBLE_DEVICES to choose among them"
        raise request_error("device", "auto, cuda or cpu where several processes share the work", repr(name), remedy)
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", number)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(f"{name}:{number}" if name == "cuda" else name)
        torch.empty(1, device=device)
        if device.type not in ("cpu", "cuda", "mps"):  # torch has others, on which nothing here was ever tried
            raise RuntimeError(f"a device of the type {device.type}")
    except (RuntimeError, AssertionError) as error:
        got = f"{name!r}: {str(error).splitlines()[0]}"
        raise request_error(
            "device", "auto, or a device that is present here: cpu, cuda or cuda:N", got, "use device: auto"
        ) from None
    return device


def check_dtype(name: str, device: torch.device, key: str) -> None:
    """Refuse bfloat16 on a GPU that does not compute in it.

    Raises:
        RequestError: it does not; `key` is where the dtype was asked for.

    """
    if name == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        got = f"bfloat16 on {torch.cuda.get_device_name(device)}, which does not have it"
        raise request_error(key, "a dtype that the device computes in", got, f"set {key} to float32")
