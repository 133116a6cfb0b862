"""What in the environment changes the numbers besides the request: known to change nothing, or refused; and recorded.

``accelerate launch`` speaks to its processes by ``ACCELERATE_*``, where every variable that is not known to leave the
numbers alone must be off. Math libraries have variables of their own that trade precision for speed unasked.
"""

import os
from typing import Any

from lors_cli import processes
from lors_cli.errors import Problem, RequestError

OFF = {"", "0", "no", "none", "false", "off"}
# Variables of accelerate that change no number: what it logs, how processes are placed, details of what is off.
# ACCELERATE_USE_FSDP is obeyed (train.parallel: fsdp), ACCELERATE_USE_CPU compared with the device.
HARMLESS = {
    *("ACCELERATE_USE_FSDP", "ACCELERATE_USE_CPU", "ACCELERATE_LOG_LEVEL", "ACCELERATE_DEBUG_MODE"),
    *("ACCELERATE_CPU_AFFINITY", "ACCELERATE_ENABLE_RICH", "ACCELERATE_NUM_PROCESSES", "ACCELERATE_DEBUG_RDV_FILE"),
    *("ACCELERATE_DYNAMO_MODE", "ACCELERATE_DYNAMO_USE_FULLGRAPH", "ACCELERATE_DYNAMO_USE_DYNAMIC"),
    *("ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION", "ACCELERATE_BYPASS_DEVICE_MAP", "ACCELERATE_CONFIG_DS_FIELDS"),
    # Of people's job scripts and of older versions: accelerate itself reads none of them.
    *("ACCELERATE_DIR", "ACCELERATE_PATH", "ACCELERATE_CONFIG", "ACCELERATE_CONFIG_FILE", "ACCELERATE_DISABLE_RICH"),
}
# What a variable has to say if it is set; None: it must be off.
EXACT: dict[str, set[str] | None] = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": {"1"},
    "NVIDIA_TF32_OVERRIDE": None,
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": None,
    "HIPBLASLT_ALLOW_TF32": None,
    "CUBLAS_EMULATE_SINGLE_PRECISION": None,
    "CUBLAS_EMULATE_DOUBLE_PRECISION": None,
    "ONEDNN_DEFAULT_FPMATH_MODE": {"strict"},
    "DNNL_DEFAULT_FPMATH_MODE": {"strict"},
    "PYTORCH_MPS_FAST_MATH": None,
    "XLA_USE_BF16": None,
    "XLA_DOWNCAST_BF16": None,
}
# What to do about a variable where unsetting it does not help, because the launcher sets it again.
LAUNCHED = {
    "ACCELERATE_MIXED_PRECISION": "accelerate launch --mixed_precision no; for 16-bit weights set dtype: bfloat16",
    "ACCELERATE_DYNAMO_BACKEND": "accelerate launch --dynamo_backend no",
}
# How MPI's launchers count processes. accelerate would join them, where lors counts by WORLD_SIZE alone.
MPI_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
# These change how a sum is rounded at most; they are recorded where they are set.
RECORDED = ("CUBLAS_WORKSPACE_CONFIG", "FLASH_ATTENTION_DETERMINISTIC", "PYTORCH_ENABLE_MPS_FALLBACK")


def check(device: str) -> None:
    """Refuse an environment in which the numbers would be others than the request says.

    Args:
        device: that of the request.

    Raises:
        RequestError: with every variable and every setting of torch that is not understood.

    """
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"  # some transformers would load in one process
    if processes.count() == 1:
        os.environ.pop("ACCELERATE_USE_FSDP", None)  # nothing to share; accelerate would wrap the model all the same
    problems = [*_variables(device), *_torch()]
    if problems:
        raise RequestError(*problems)


def _variables(device: str) -> list[Problem]:
    problems = []
    for name, value in sorted(os.environ.items()):
        if name in HARMLESS or not (name in EXACT or name.startswith("ACCELERATE_")):
            continue
        allowed = EXACT.get(name)
        if value.strip().lower() not in (OFF if allowed is None else {"", *allowed}):
            expected = "nothing that changes the numbers" if allowed is None else " or ".join(sorted(allowed)).upper()
            remedy = LAUNCHED.get(name, f"unset {name}, and the option or the config of the launcher that sets it")
            problems.append(_problem(name, expected, repr(value), remedy))
    for name in () if "WORLD_SIZE" in os.environ else MPI_SIZES:
        if os.environ.get(name, "1") != "1":
            remedy = f"start the processes with torchrun; for runs that do not share work, unset {name}"
            problems.append(_problem(name, "one process", repr(os.environ[name]), remedy))
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() not in OFF
    if on_cpu and device != "cpu" and _gpu():
        remedy = "set device: cpu, or leave out accelerate launch --cpu"
        problems.append(_problem("ACCELERATE_USE_CPU", f"device: {device} obeyed", "a CPU", remedy))
    return problems


def _problem(name: str, expected: str, got: str, remedy: str) -> Problem:
    return Problem(name, expected, got, remedy, file="environment")


def _gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _torch() -> list[Problem]:
    """The settings of torch that a sitecustomize or a variable may have changed before the command began."""
    now, remedy = in_force(), "remove what sets it, in sitecustomize.py or where lors is called"
    wanted = {
        "float32_matmul_precision": "highest",
        "default_dtype": "float32",
        "default_device": "cpu",
        "autocast": [],
    }
    return [
        _problem(f"torch's {name}", repr(value), repr(now[name]), remedy)
        for name, value in wanted.items()
        if now[name] != value
    ]


def in_force() -> dict[str, Any]:
    """What decides, besides the dtype of the weights, how this process computes."""
    import torch

    cuda = torch.backends.cuda.matmul
    return {
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "cudnn_tf32": torch.backends.cudnn.allow_tf32,
        "bfloat16_reduced_precision_reduction": bool(cuda.allow_bf16_reduced_precision_reduction),
        "float16_reduced_precision_reduction": bool(cuda.allow_fp16_reduced_precision_reduction),
        "default_dtype": str(torch.get_default_dtype()).removeprefix("torch."),
        "default_device": torch.get_default_device().type,
        "autocast": [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)],
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "processes": processes.count(),
        "variables": {name: os.environ[name] for name in RECORDED if name in os.environ},
    }
