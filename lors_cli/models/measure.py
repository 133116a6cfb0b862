"""What linears hold, measured from the files of a model directory, one tensor in memory at a time."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lors_cli.artifacts import tensors
from lors_cli.errors import LorsError
from lors_cli.models import linears, load
from lors_cli.sparsity import mask


def model(
    directory: Path, check: Callable[[str, Tensor], None] | None = None, *, trust_remote_code: bool = False
) -> dict[str, Any]:
    """Zeros and pattern of each linear of the blocks, in the model's order, and of all together; other tensors by size.

    `check` is called with the name and the weight of each linear.
    """
    names = linears.all_linears(load.skeleton(directory, trust_remote_code=trust_remote_code)).keys()
    modules, others = {}, {}
    for name, tensor in tensors.read(directory):
        module = name.removesuffix(".weight")
        if module in names:
            modules[module] = weight(tensor)
            if check:
                check(module, tensor)
        else:
            others[name] = {"shape": list(tensor.shape), "dtype": tensors.dtype_name(tensor.dtype)}
    if names - modules.keys():
        raise LorsError(
            f"{directory} has no tensor {min(names - modules.keys())}.weight: its tensors are named otherwise than the"
            " model's modules; save it once with transformers' save_pretrained"
        )
    modules = {name: modules[name] for name in names}  # files order them as text: block 10 before block 2
    return {"kind": "model", **total(modules), "modules": modules, "other_tensors": others}


def weight(weight: Tensor) -> dict[str, Any]:
    """The facts about one weight (R, C)."""
    support = weight != 0
    zeros = weight.numel() - int(torch.count_nonzero(support))
    return {
        "shape": list(weight.shape),
        "dtype": tensors.dtype_name(weight.dtype),
        "parameters": weight.numel(),
        "zeros": zeros,
        "sparsity": zeros / weight.numel(),
        "pattern": mask.detect(support),
        "negative_zeros": mask.negative_zeros(weight),
        "finite": mask.finite(weight),
    }


def total(modules: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Sparsity and pattern over all of the measured modules; the pattern is "mixed" where they differ."""
    parameters = sum(facts["parameters"] for facts in modules.values())
    zeros = sum(facts["zeros"] for facts in modules.values())
    patterns = {facts["pattern"] for facts in modules.values()}
    return {
        "sparsity": zeros / max(parameters, 1),
        "pattern": patterns.pop() if len(patterns) == 1 else "mixed",
        "zeros": zeros,
        "parameters": parameters,
    }
