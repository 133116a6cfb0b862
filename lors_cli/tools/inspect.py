"""What is in a model or adapter directory, measured from its files, one tensor in memory at a time."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers.core_model_loading import dot_natural_key

from lors_cli.artifacts import adapter_file, packed_model, tensors
from lors_cli.console import markdown_table
from lors_cli.errors import request_error
from lors_cli.models import measure, source
from lors_cli.run import manifest, places, tidy
from lors_cli.run.job import verified_digest
from lors_cli.sparsity import mask

MOST = 3  # different values in a cell


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


def render(facts: dict[str, Any], *, modules: bool = False) -> str:
    """The facts for people, and the paths of the plots that were drawn.

    Args:
        facts: as `inspect` gives them.
        modules: whether each linear has a row; else those of the same place in their blocks share one.

    """
    header, rows = (_rows if modules else _places)(facts)
    parts = [_head(facts), markdown_table(header, rows), *(["\n".join(facts["plots"])] if "plots" in facts else [])]
    return "\n\n".join(parts)


def _rows(facts: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """A row for each linear, block 2 before block 10."""
    named = list(facts["modules"].items())
    if facts["kind"] == "adapter":  # whose file has them in the order of the letters
        named.sort(key=lambda pair: dot_natural_key(pair[0]))
        rows = [[name, ", ".join(f"{n} {tuple(t['shape'])}" for n, t in one.items())] for name, one in named]
        rows += [[name, f"value {tuple(t['shape'])}"] for name, t in facts.get("also", {}).items()]
        return ["linear", "tensors"], rows
    return ["linear", "shape", "dtype", "sparsity", "pattern"], [
        [name, _shape(one), _stored(one), f"{one['sparsity']:.4f}", one["pattern"]] for name, one in named
    ]


def _places(facts: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """A row for the linears of the same place in their blocks."""
    places = manifest.by_place(facts["modules"])
    if facts["kind"] == "adapter":
        rows = [
            [place, str(len(every)), ", ".join(f"{name} {_some(_tuples(every, name))}" for name in every[0])]
            for place, every in places.items()
        ]
        beside: dict[str, list[dict[str, Any]]] = {}
        for name, one in facts.get("also", {}).items():
            beside.setdefault(".".join(name.split(".")[-2:]), []).append(one)
        rows += [
            [name, str(len(every)), f"value {_some([tuple(t['shape']) for t in every])}"]
            for name, every in beside.items()
        ]
        return ["place", "linears", "tensors"], rows
    return ["place", "linears", "shape", "dtype", "sparsity", "pattern"], [
        [
            place,
            str(len(every)),
            _some(map(_shape, every)),
            _some(map(_stored, every)),
            _range([one["sparsity"] for one in every]),
            _some(one["pattern"] for one in every),
        ]
        for place, every in places.items()
    ]


def _tuples(every: list[dict[str, Any]], name: str) -> list[tuple[int, ...]]:
    return [tuple(named[name]["shape"]) for named in every if name in named]


def _shape(linear: dict[str, Any]) -> str:
    return "x".join(map(str, linear["shape"]))


def _range(values: list[float]) -> str:
    least, most = f"{min(values):.4f}", f"{max(values):.4f}"
    return least if least == most else f"{least} to {most}"


def _some(values: Iterable[Any]) -> str:
    """The different ones, or how many they are."""
    different = list(dict.fromkeys(map(str, values)))
    return ", ".join(different) if len(different) <= MOST else f"{len(different)} kinds"


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


def _head(facts: dict[str, Any]) -> str:
    provenance = facts["provenance"]
    made = f"made by lors {provenance['stage']}, {provenance['created']}" if provenance else f"no {manifest.NAME}"
    head = f"{facts['path']}: {facts['kind']}, {facts['bytes'] / 1e6:.1f} MB, {made}"
    if facts["kind"] == "adapter":
        what = f"{facts['method']}, rank {facts['rank']}, alpha {facts['alpha']:g}, {facts['parameters']:,} parameters"
        if "mask_kept" in facts:
            what += (
                f"\nfor `lors merge` alone: the update of {facts['mask_kept']:.4f} of the weights (recover.mask: kept)"
            )
        return f"{head}\n{what}"
    what = f"linears of the blocks: sparsity {facts['sparsity']:.4f}, {facts['pattern']}, {facts['zeros']:,} zeros"
    if found := facts.get("packed"):
        kinds = ", ".join(f"{count} {kind}" for kind, count in found["tensors"].items() if count)
        what += f"\npacked: {kinds} tensors; {found['unpacked_bytes'] / 1e6:.1f} MB of weights when unpacked"
    if "quantization" in facts:
        what += f"\n{_grid(facts)}"
    if facts["not_finite"]:
        what += f"\nNaN or infinity in {', '.join(facts['not_finite'])}"
    return f"{head}\n{what}"
