"""What linears hold, measured from the files of a model directory, one tensor in memory at a time."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lors_cli.artifacts import tensors
from lors_cli.artifacts.quantized_files import QuantizedFiles
from lors_cli.artifacts.tensors import TensorFiles
from lors_cli.errors import LorsError
from lors_cli.models import linears, load
from lors_cli.models.weights import Weights, unknown
from lors_cli.sparsity import mask


def model(
    directory: Path, check: Callable[[str, Tensor], None] | None = None, *, trust_remote_code: bool = False
) -> dict[str, Any]:
    """Zeros and pattern of each linear of the blocks, in the model's order, and of all together; other tensors by size.

    "not_finite" names the tensors, of all, that hold NaN or infinity. "quantization" is there if weights are quantised;
    they are measured as the numbers that they stand for.
    `check` is called with the name and the weight of each linear.

    Raises:
        RequestError: a tensor in the files belongs to nothing in the model that config.json describes.
        LorsError: a file is damaged, or lacks a linear.

    """
    skeleton = load.skeleton(directory, trust_remote_code=trust_remote_code, quantized=True)
    names, weights = linears.all_linears(skeleton).keys(), Weights(directory, skeleton)
    if weights.unknown:
        raise unknown(weights, skeleton, "model", directory)
    modules, others, not_finite = {}, {}, []
    for name in weights.files.layout:
        tensor = weights.files.tensor(name)
        if tensor.is_floating_point() and tensor.numel() and not mask.finite(tensor):
            not_finite.append(name)
        module = weights.by_file.get(name, name).removesuffix(".weight")
        if module in names:
            modules[module] = weight(tensor) | _quantization(weights.files, name.removesuffix(".weight"))
            if check:
                check(module, tensor)
        else:
            others[name] = {"shape": list(tensor.shape), "dtype": tensors.dtype_name(tensor.dtype)}
    if names - modules.keys():
        raise LorsError(f"{directory} has no tensor {min(names - modules.keys())}.weight")
    modules = {name: modules[name] for name in names}  # files order them as text: block 10 before block 2
    quantized = {"quantization": total_bits(modules)} if isinstance(weights.files, QuantizedFiles) else {}
    facts = {"modules": modules, "other_tensors": others, "not_finite": not_finite}
    return {"kind": "model", **total(modules), **quantized, **facts}


def _quantization(files: TensorFiles, linear: str) -> dict[str, Any]:
    """The grid of a linear and its bits on disk, where it is quantised."""
    if not isinstance(files, QuantizedFiles) or linear not in files.linears:
        return {}
    return {**asdict(files.grid), "bits_per_weight": files.linears[linear]}


def total_bits(modules: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The grid of the quantised ones of the measured modules, which they share, and their mean bits on disk."""
    quantized = [facts for facts in modules.values() if "bits" in facts]
    stored = sum(facts["bits_per_weight"] * facts["parameters"] for facts in quantized)
    grid = {key: quantized[0][key] for key in ("bits", "group_size", "symmetric")}
    return {**grid, "bits_per_weight": stored / sum(facts["parameters"] for facts in quantized)}


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
