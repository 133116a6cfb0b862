"""Environments that would change the numbers: refused by the name of the variable, the others recorded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import Result

from lors_cli import numerics
from lors_cli.errors import RequestError
from lors_cli.training import train
from lors_cli.training.arguments import arguments
from tests.training.outcome import adapter, manifest, same, unbroken

# What ``accelerate launch --mixed_precision no`` gives its processes.
LAUNCHED = {
    "ACCELERATE_USE_CPU": "False",
    "ACCELERATE_MIXED_PRECISION": "no",
    "ACCELERATE_DYNAMO_BACKEND": "NO",
    "ACCELERATE_DYNAMO_MODE": "default",
    "ACCELERATE_DYNAMO_USE_FULLGRAPH": "False",
    "ACCELERATE_DYNAMO_USE_DYNAMIC": "False",
    "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION": "False",
    "ACCELERATE_DIR": "/accelerate",  # of a job script
}


def test_a_plain_environment_and_a_plain_launcher_are_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    numerics.check("cpu")
    for name, value in {**LAUNCHED, "ONEDNN_DEFAULT_FPMATH_MODE": "STRICT", "NVIDIA_TF32_OVERRIDE": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    numerics.check("auto")
    assert numerics.in_force()["variables"] == {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ACCELERATE_MIXED_PRECISION", "bf16"),
        ("ACCELERATE_MIXED_PRECISION", "FP16"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR"),
        ("ACCELERATE_USE_DEEPSPEED", "true"),
        ("ACCELERATE_USE_MEGATRON_LM", "1"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "true"),
        ("ACCELERATE_DOWNCAST_BF16", "yes"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4"),
        ("ACCELERATE_FP8_BACKEND", "TE"),
        ("ACCELERATE_OF_A_LATER_VERSION", "on"),
        ("NVIDIA_TF32_OVERRIDE", "1"),
        ("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "1"),
        ("ONEDNN_DEFAULT_FPMATH_MODE", "BF16"),
        ("XLA_DOWNCAST_BF16", "1"),
        ("OMPI_COMM_WORLD_SIZE", "4"),
    ],
)
def test_a_variable_that_changes_numbers_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(RequestError) as refused:
        numerics.check("cpu")
    (problem,) = refused.value.problems
    assert (problem.file, problem.key, problem.got) == ("environment", name, repr(value))


def test_what_was_set_in_torch_is_refused() -> None:
    torch.set_float32_matmul_precision("high")
    torch.set_default_dtype(torch.float64)
    try:
        with torch.autocast("cpu", torch.bfloat16), pytest.raises(RequestError) as refused:
            numerics.check("cpu")
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.set_default_dtype(torch.float32)
    said = str(refused.value)
    assert all(name in said for name in ("float32_matmul_precision", "default_dtype", "autocast"))
    numerics.check("cpu")


def test_a_training_under_a_plain_launcher_is_the_same_and_says_what_was_in_force(
    lors: Callable[..., Result], write_config: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config()
    lors("prune", config)
    wanted = unbroken(lors, tmp_path, config)
    for name, value in {**LAUNCHED, "ACCELERATE_USE_FSDP": "true"}.items():
        monkeypatch.setenv(name, value)
    lors("train", config)
    assert same(adapter(tmp_path), wanted)
    made = manifest(tmp_path)
    assert made["numerics"] == numerics.in_force()
    assert {key: made["trainer"][key] for key in ("mixed_precision", "distributed_type", "processes", "device")} == {
        "mixed_precision": "no",
        "distributed_type": "NO",
        "processes": 1,
        "device": "cpu",
    }


def test_what_no_variable_says_is_seen_once_accelerate_has_begun(
    lors: Callable[..., Result], write_config: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config()
    lors("prune", config)

    def otherwise(*args: Any, **options: Any) -> Any:
        settings = arguments(*args, **options)
        settings.mixed_precision = "bf16"
        return settings

    with monkeypatch.context() as patch:
        patch.setattr(train, "arguments", otherwise)
        said = lors("train", config, status=2).stderr
    assert "accelerate's mixed_precision" in said
    assert not (tmp_path / "run/adapter").exists()
    lors("train", config)


@pytest.mark.parametrize("stage", ["prune", "train", "eval"])
def test_every_stage_refuses_before_work(
    lors: Callable[..., Result],
    write_config: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    said = lors(stage, write_config(), status=2).stderr
    assert "ACCELERATE_MIXED_PRECISION" in said
    assert "--mixed_precision no" in said
    assert not (tmp_path / "run").exists()
