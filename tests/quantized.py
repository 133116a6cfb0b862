"""Quantised pico models, written as `lors quantize` writes them."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from lors_cli.artifacts import quantized_files
from lors_cli.quantization.grid import Grid, codes_of, fit
from lors_cli.quantization.stored import Quantized, to_tensors


def write(source: Path, target: Path, grid: Grid | None = None, *, scale: torch.dtype = torch.float32) -> Path:
    """The model in `source` with the linears of its blocks rounded to a grid, in `target`."""
    grid = grid or Grid(4, 16, symmetric=False)
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("lors.json"))
    tensors = load_file(target / "model.safetensors")
    for name in [name for name in tensors if "proj" in name]:
        weight, linear = tensors.pop(name), name.removesuffix(".weight")
        scales = fit(weight, grid, scale)
        parts = to_tensors(Quantized(codes_of(weight, scales, grid), *scales, grid))
        tensors |= {f"{linear}.{part}": tensor for part, tensor in parts.items()}
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((target / "config.json").read_text())
    config[quantized_files.KEY] = quantized_files.section(grid, ["lm_head"])
    (target / "config.json").write_text(json.dumps(config))
    return target
