"""What a training has left in the directory of a run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor
from typer.testing import Result

from lors_cli.training import checkpoint

CHECKPOINTS = "run/.adapter.partial/work/checkpoints"


def adapter(tmp_path: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = load_file(tmp_path / "run/adapter/adapter_model.safetensors")
    return tensors


def log(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "run/adapter/training_log.jsonl").read_text().splitlines()]


def losses(tmp_path: Path, key: str = "loss") -> list[float]:
    return [line[key] for line in log(tmp_path) if key in line]


def manifest(tmp_path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((tmp_path / "run/adapter/lors.json").read_text())
    return content


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(tensor.equal(other[name]) for name, tensor in one.items())


def checkpoints(tmp_path: Path) -> list[int]:
    """The steps of those that an unfinished training has left."""
    return list(checkpoint.numbered(tmp_path / CHECKPOINTS))


def unbroken(lors: Callable[..., Result], tmp_path: Path, config: Path, *options: str) -> dict[str, Tensor]:
    """The adapter of a training that nothing interrupts, which is moved out of the way afterwards."""
    lors("train", config, *options)
    tensors = adapter(tmp_path)
    (tmp_path / "run/adapter").rename(tmp_path / "unbroken")
    return tensors
