"""What is in a model or adapter directory, measured from its files, one tensor in memory at a time."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lors_cli.artifacts import adapter_file, packed_model, tensors
from lors_cli.console import markdown_table
from lors_cli.errors import request_error
from lors_cli.models import measure, source
from lors_cli.run import manifest, places, tidy
from lors_cli.run.job import verified_digest
from lors_cli.sparsity import mask


def inspect(path: Path) -> dict[str, Any]:
    """The facts about `path`, ready for JSON.

    Raises:
        RequestError: it is neither a model nor an adapter directory.
        LorsError: a file is damaged.

    """
    places.exists("PATH", path)
    tidy.outputs([path])
    if (path / adapter_file.CONFIG).is_file():
        facts = inspect_adapter(path)
    elif (path / "config.json").is_file():
        source.require_model(path, "PATH", packed=True)
        facts = measure.model(path) | ({"packed": packed_model.facts(path)} if packed_model.is_packed(path) else {})
    else:
        state = "has neither config.json nor adapter_config.json" if path.is_dir() else "does not exist"
        got = f"{path}, which {state}"
        raise request_error("PATH", "a model or adapter directory", got, "name a directory such as runs/x/pruned")
    if made := manifest.read(path):
        verified_digest(path)
    files = sorted(file for file in path.iterdir() if file.is_file())
    return {
        "path": str(path),
        **facts,
        "files": {file.name: file.stat().st_size for file in files},
        "bytes": sum(file.stat().st_size for file in files),
        "provenance": made.content if made else None,
    }


def inspect_adapter(directory: Path) -> dict[str, Any]:
    """Method, size and modules of an adapter."""
    content = adapter_file.load(directory, "PATH", uniform=False)
    modules = {module: _described(named) for module, named in content.modules.items()}
    beside = _described(content.vectors)
    floats = [t for named in [*content.modules.values(), content.vectors] for t in named.values()]
    sizes = [tensor.numel() for tensor in floats if tensor.is_floating_point()]
    masks = [(t["mask"], t["lora_A"].shape[1]) for t in content.modules.values() if "mask" in t]
    kept = sum(int(mask.from_bits(bits, columns).sum()) for bits, columns in masks)
    return {
        "kind": "adapter",
        "method": content.method,
        "rank": content.rank,
        "alpha": content.alpha,
        "parameters": sum(sizes),
        **({"mask_kept": kept / sum(len(bits) * columns for bits, columns in masks)} if masks else {}),
        "modules": modules,
        **({"also": beside} if beside else {}),
    }


def render(facts: dict[str, Any]) -> str:
    """The facts as a table for people, and the paths of the plots that were drawn."""
    return "\n\n".join([_table(facts), *(["\n".join(facts["plots"])] if "plots" in facts else [])])


def _grid(facts: dict[str, Any]) -> str:
    """The grid of a quantised model in a line of text."""
    grid, linears = facts["quantization"], [one for one in facts["modules"].values() if "bits" in one]
    kind = "symmetric" if grid["symmetric"] else "with zero points"
    return (
        f"{len(linears)} of {len(facts['modules'])} linears quantised: {grid['bits']} bits in groups of"
        f" {grid['group_size']}, {kind}, {grid['bits_per_weight']:.3f} bits a weight with scales"
    )


def _stored(linear: dict[str, Any]) -> str:
    """What the weights of a linear are stored as."""
    return f"int{linear['bits']} x {linear['dtype']}" if "bits" in linear else str(linear["dtype"])


def _described(named: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """The shape and the dtype of tensors by their names."""
    return {name: {"shape": list(t.shape), "dtype": tensors.dtype_name(t.dtype)} for name, t in named.items()}


def _table(facts: dict[str, Any]) -> str:
    provenance = facts["provenance"]
    made = f"made by lors {provenance['stage']}, {provenance['created']}" if provenance else f"no {manifest.NAME}"
    head = f"{facts['path']}: {facts['kind']}, {facts['bytes'] / 1e6:.1f} MB, {made}"
    if facts["kind"] == "adapter":
        what = f"{facts['method']}, rank {facts['rank']}, alpha {facts['alpha']:g}, {facts['parameters']:,} parameters"
        if "mask_kept" in facts:
            what += (
                f"\nfor `lors merge` alone: the update of {facts['mask_kept']:.4f} of the weights (recover.mask: kept)"
            )
        rows = [
            [m, ", ".join(f"{n} {tuple(t['shape'])}" for n, t in named.items())]
            for m, named in facts["modules"].items()
        ]
        rows += [[name, f"value {tuple(t['shape'])}"] for name, t in facts.get("also", {}).items()]
        return f"{head}\n{what}\n\n{markdown_table(['linear', 'tensors'], rows)}"
    what = f"linears of the blocks: sparsity {facts['sparsity']:.4f}, {facts['pattern']}, {facts['zeros']:,} zeros"
    if found := facts.get("packed"):
        kinds = ", ".join(f"{count} {kind}" for kind, count in found["tensors"].items() if count)
        what += f"\npacked: {kinds} tensors; {found['unpacked_bytes'] / 1e6:.1f} MB of weights when unpacked"
    if "quantization" in facts:
        what += f"\n{_grid(facts)}"
    if facts["not_finite"]:
        what += f"\nNaN or infinity in {', '.join(facts['not_finite'])}"
    rows = [
        [name, "x".join(map(str, m["shape"])), _stored(m), f"{m['sparsity']:.4f}", m["pattern"]]
        for name, m in facts["modules"].items()
    ]
    return f"{head}\n{what}\n\n{markdown_table(['linear', 'shape', 'dtype', 'sparsity', 'pattern'], rows)}"
