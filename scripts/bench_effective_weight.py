"""The effective weight of LoRS against a copy of the same weight: fused from every layout, and as the paper lists it.

    python scripts/bench_effective_weight.py --device cuda --json effective_weight.json
    python scripts/bench_effective_weight.py --device cpu --shapes 512x512      # checks the script itself

For each weight and rank: microseconds (median of 20 after warm-up, ways in turn) and the share of the copy's bandwidth
that the bytes it has to move make: 2 numbers a weight, of packed ones less. 1.0 is the bound.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lors_cli.adapters.effective_weight import EffectiveWeight
from lors_cli.adapters.lors_listing import listed_weight
from lors_cli.benchmark import clock
from lors_cli.quantization import packed as quantized
from lors_cli.quantization.grid import Grid, codes_of, fit
from lors_cli.quantization.stored import Quantized
from lors_cli.run import environment
from lors_cli.sparsity.packed import Stored, pack


def compare(rows: int, columns: int, rank: int, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """All ways on one weight."""
    weight = torch.randn(rows, columns, device=device, dtype=dtype)
    weight[(torch.rand(rows, columns // 4, 4, device=device).argsort(dim=-1) < 2).view(rows, columns)] = 0
    a, b = torch.randn(rank, columns, device=device), torch.randn(rows, rank, device=device) * 1e-3
    target = torch.empty_like(weight)
    stored = {"dense": Stored(weight), "2:4": pack(weight, "2:4"), "bitmask": pack(weight, "bitmask")}
    ways: dict[str, Callable[[], Tensor]] = {"copy": lambda: target.copy_(weight)}
    grid = Grid(bits=4, group_size=128)
    codes = Quantized(codes_of(weight, scales := fit(weight, grid), grid), *scales, grid)
    stored |= {f"int4 {layout}": quantized.pack(codes, layout) for layout in ("2:4", "bitmask")}
    stored["int4 2:4, on its grid"] = stored["int4 2:4"]
    for name, base in stored.items():
        effective = EffectiveWeight(base, a, b, 0.5, None, dtype, bits=4 * name.endswith("grid"))
        ways[f"fused, {name}"] = lambda effective=effective: effective.make(target)  # type: ignore[misc]
    ways["listing"] = lambda: listed_weight(weight, a, b, 0.5)
    times = {name: seconds * 1e6 for name, seconds in clock.medians(ways, device).items()}
    size = weight.numel() * weight.itemsize
    moved = {"copy": 2 * size, "listing": 2 * size} | {f"fused, {n}": base.bytes + size for n, base in stored.items()}
    bandwidth = moved["copy"] / times["copy"]
    return {
        "rows": rows,
        "columns": columns,
        "rank": rank,
        "ways": {name: {"us": us, "share_of_copy": moved[name] / us / bandwidth} for name, us in times.items()},
    }


def main() -> None:
    """Run the comparison and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--shapes", nargs="*", default=["14336x4096", "4096x4096", "1024x4096"])
    parser.add_argument("--ranks", nargs="*", type=int, default=[16, 64])
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    results = []
    print("| weight | rank | way | us | share of copy |\n|---|---:|---|---:|---:|")
    for shape in options.shapes:
        rows, columns = map(int, shape.split("x"))
        for rank in options.ranks:
            results.append(compare(rows, columns, rank, dtype, device))
            for name, way in results[-1]["ways"].items():
                print(f"| {shape} | {rank} | {name} | {way['us']:.1f} | {way['share_of_copy']:.2f} |", flush=True)
    if options.json:
        facts = {"command": " ".join(sys.argv), "hardware": environment.hardware(), "versions": environment.versions()}
        options.json.write_text(json.dumps({**facts, "dtype": options.dtype, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
