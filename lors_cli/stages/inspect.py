"""What is in a model or adapter directory, measured from its files, one tensor in memory at a time."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lors_cli.artifacts import adapter_file, manifest, tensors
from lors_cli.console import markdown_table
from lors_cli.errors import LorsError, request_error
from lors_cli.models import linears, load, source
from lors_cli.sparsity import mask


def inspect(path: Path) -> dict[str, Any]:
    """The facts about `path`, ready for JSON.

    Raises:
        RequestError: it is neither a model nor an adapter directory.
        LorsError: a file is damaged.

    """
    if (path / adapter_file.CONFIG).is_file():
        facts = inspect_adapter(path)
    elif (path / "config.json").is_file():
        source.require_model(path, "PATH")
        facts = inspect_model(path)
    else:
        got = f"{path}, which {'has neither config' if path.is_dir() else 'does not exist'}"
        raise request_error("PATH", "a model or adapter directory", got, "name a directory such as runs/x/pruned")
    files = sorted(file for file in path.iterdir() if file.is_file())
    return {
        "path": str(path),
        **facts,
        "files": {file.name: file.stat().st_size for file in files},
        "bytes": sum(file.stat().st_size for file in files),
        "provenance": manifest.read(path),
    }


def inspect_model(
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
            modules[module] = measure(tensor)
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


def measure(weight: Tensor) -> dict[str, Any]:
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


def inspect_adapter(directory: Path) -> dict[str, Any]:
    """Method, size and modules of an adapter."""
    content = adapter_file.load(directory, "PATH")
    modules = {
        module: {name: {"shape": list(t.shape), "dtype": tensors.dtype_name(t.dtype)} for name, t in named.items()}
        for module, named in content.modules.items()
    }
    return {
        "kind": "adapter",
        "method": content.method,
        "rank": content.rank,
        "alpha": content.alpha,
        "parameters": sum(t.numel() for named in content.modules.values() for t in named.values()),
        "modules": modules,
    }


def render(facts: dict[str, Any]) -> str:
    """The facts as a table for people, and the paths of the plots that were drawn."""
    return "\n\n".join([_table(facts), *(["\n".join(facts["plots"])] if "plots" in facts else [])])


def _table(facts: dict[str, Any]) -> str:
    provenance = facts["provenance"]
    made = f"made by lors {provenance['stage']}, {provenance['created']}" if provenance else f"no {manifest.NAME}"
    head = f"{facts['path']}: {facts['kind']}, {facts['bytes'] / 1e6:.1f} MB, {made}"
    if facts["kind"] == "adapter":
        what = f"{facts['method']}, rank {facts['rank']}, alpha {facts['alpha']:g}, {facts['parameters']:,} parameters"
        rows = [
            [m, ", ".join(f"{n} {tuple(t['shape'])}" for n, t in named.items())]
            for m, named in facts["modules"].items()
        ]
        return f"{head}\n{what}\n\n{markdown_table(['linear', 'tensors'], rows)}"
    what = f"linears of the blocks: sparsity {facts['sparsity']:.4f}, {facts['pattern']}, {facts['zeros']:,} zeros"
    rows = [
        [name, "x".join(map(str, m["shape"])), m["dtype"], f"{m['sparsity']:.4f}", m["pattern"]]
        for name, m in facts["modules"].items()
    ]
    return f"{head}\n{what}\n\n{markdown_table(['linear', 'shape', 'dtype', 'sparsity', 'pattern'], rows)}"
