"""``lors quantize``: against plain transformers with compressed-tensors, an independent GPTQ, and killed runs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, CompressedTensorsConfig
from typer.testing import Result

from lors_cli.artifacts.quantized_files import open_quantized
from lors_cli.config.load import load
from lors_cli.models.load import load_model
from lors_cli.stages import common
from tests.sequential.test_engine import content, stop_after

Lors = Callable[..., Result]
WriteConfig = Callable[..., Path]
TEXT = {"dataset": "python-topics", "sequence_length": 32, "samples": 8}
GPTQ = {"method": "gptq", "group_size": 16, "calibration": TEXT}
CPU = torch.device("cpu")

KINDS: list[dict[str, Any]] = [
    GPTQ,
    {**GPTQ, "bits": 3, "symmetric": False},
    {**GPTQ, "bits": 8, "act_order": True},
    {"method": "rtn", "group_size": 32},
    {**GPTQ, "symmetric": False, "targets": ["down_proj", "*.1.self_attn.*"], "states": "disk"},
]


@pytest.fixture
def write(write_config: WriteConfig, pruned: Path) -> Callable[..., Path]:
    """Write a config that quantises the pruned pico model."""

    def config(quantize: dict[str, Any], **changes: Any) -> Path:
        whole = {"prune": ..., "train": ..., "merge": ..., "model": str(pruned), "quantize": quantize, **changes}
        return write_config(**{"eval__models": ["dense", "quantized"], **whole})

    return config


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS, ids=str)
@torch.no_grad()
def test_transformers_loads_the_same_model(
    lors: Lors, write: Callable[..., Path], pruned: Path, tmp_path: Path, kind: dict[str, Any], dtype: str
) -> None:
    lors("quantize", write(kind, dtype=dtype))
    made = tmp_path / "run/quantized"
    # compressed-tensors 0.20 prepares room for zero points as they are before packing, so plain loading needs this
    asked = {} if kind.get("symmetric", True) else {"quantization_config": CompressedTensorsConfig(dequantize=True)}
    theirs = AutoModelForCausalLM.from_pretrained(made, dtype="auto", **asked)
    ours, ids = load_model(made, "auto", CPU), torch.arange(60)[None]
    assert torch.equal(theirs(ids).logits, ours(ids).logits)
    assert theirs.dtype == ours.dtype == getattr(torch, dtype)
    before = load_file(pruned / "model.safetensors")
    opened = open_quantized(made)
    assert len(opened.linears) == (6 if "targets" in kind else 14)
    for name, weight in theirs.state_dict().items():
        if name.removesuffix(".weight") in opened.linears:
            assert torch.equal(weight, opened.quantized(name.removesuffix(".weight")).weight())
            assert bool((weight[before[name] == 0] == 0).all())
            assert not torch.equal(weight.float(), before[name])
        elif name in before:
            assert torch.equal(weight, before[name].to(weight.dtype))


def test_what_is_recorded_and_shown(lors: Lors, write: Callable[..., Path], tmp_path: Path) -> None:
    config = write({**GPTQ, "symmetric": False})
    assert "14 linears to 4 bits in groups of 16" in lors("quantize", config, "--dry-run").stdout
    log = lors("run", config)
    made = json.loads((tmp_path / "run/quantized/lors.json").read_text())
    tensors = load_file(tmp_path / "run/quantized/model.safetensors")
    kinds = ("weight_packed", "weight_scale", "weight_zero_point")
    bits = 8 * sum(t.numel() * t.itemsize for name, t in tensors.items() if name.endswith(kinds))
    weights = 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32)
    assert made["bits_per_weight"] == pytest.approx(bits / weights)
    assert (made["bits"], made["group_size"], made["symmetric"]) == (4, 16, False)
    assert made["zeros_before"] == weights / 2
    zeros = sum(
        int((~open_quantized(tmp_path / "run/quantized").quantized(one).mask()).sum()) for one in made["modules"]
    )
    assert made["zeros"] == zeros >= made["zeros_before"]
    assert f"{zeros - weights // 2} more were rounded to zero" in log.stderr
    assert made["calibration"]["tokens"] == 8 * 32
    facts = json.loads(lors("inspect", tmp_path / "run/quantized", "--json").stdout)
    assert facts["quantization"] == {k: made[k] for k in ("bits", "group_size", "symmetric", "bits_per_weight")}
    assert facts["zeros"] == zeros
    assert all(one["bits"] == 4 and one["pattern"] == "2:4" for one in facts["modules"].values())
    shown = lors("inspect", tmp_path / "run/quantized").stdout
    assert "14 of 14 linears quantised: 4 bits in groups of 16, with zero points" in shown
    assert f"{bits / weights:.3f} bits a weight with scales" in shown
    assert "| quantized |" in log.stdout


@pytest.mark.parametrize("kind", [KINDS[1], KINDS[4]], ids=str)
def test_an_interrupted_run_ends_with_the_same_bytes(
    lors: Lors, write: Callable[..., Path], tmp_path: Path, kind: dict[str, Any]
) -> None:
    config = write(kind)
    lors("quantize", config, f"output_dir={tmp_path}/whole")
    with pytest.MonkeyPatch.context() as patch:
        stop_after(1, patch)
        lors("quantize", config, status=130)
    assert "going on at block 2" in lors("quantize", config).stderr
    assert content(tmp_path / "run/quantized") == content(tmp_path / "whole/quantized")
    assert "is up to date" in lors("quantize", config).stderr


def slow_gptq(weight: Tensor, hessian: Tensor) -> Tensor:
    """Masked GPTQ as the paper has it, int4 in groups of 16, symmetric; the numbers that the codes stand for."""
    h = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian))
    upper = torch.linalg.cholesky(torch.linalg.inv(h), upper=True)
    w, kept, out = weight.double(), weight != 0, torch.zeros_like(weight).double()
    for j in range(w.shape[1]):
        if j % 16 == 0:
            scale = (2 * w[:, j : j + 16].abs().amax(1) / 15).float().double()
        out[:, j] = (w[:, j] / scale).round().clamp(-8, 7) * scale
        w[:, j:] -= ((w[:, j] - out[:, j]) / upper[j, j])[:, None] * upper[j, j:] * kept[:, j:]
    return out


@torch.no_grad()
def test_the_first_linears_are_those_of_an_independent_gptq(
    lors: Lors, write: Callable[..., Path], pruned: Path, tmp_path: Path
) -> None:
    path = write(GPTQ)
    lors("quantize", path)
    config, model = load(path, []), load_model(pruned, "float32", CPU)
    assert config.quantize is not None
    assert config.quantize.calibration is not None
    tokens = common.calibration_tokens(config, config.quantize.calibration, pruned, model)
    block = model.model.layers[0]
    x = block.input_layernorm(model.model.embed_tokens(tokens)).flatten(0, 1).double()
    for name in ("q_proj", "k_proj", "v_proj"):
        wanted = slow_gptq(getattr(block.self_attn, name).weight, x.T @ x)
        made = open_quantized(tmp_path / "run/quantized").quantized(f"model.layers.0.self_attn.{name}").weight()
        same = torch.isclose(made.double(), wanted, rtol=1e-5, atol=0)
        assert same.double().mean() > 0.99  # float32 sums may fall on the other side of a tie


def test_lm_eval_gives_the_same_on_the_directory(
    lors: Lors, write: Callable[..., Path], tmp_path: Path, task_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = {"perplexity": ..., "tasks": ["words"], "task_dir": str(task_dir), "batch_size": 4}
    lors("run", write(GPTQ, **{f"eval__{key}": value for key, value in tasks.items()}))
    ours = json.loads((tmp_path / "run/eval/results.json").read_text())["models"]["quantized"]["tasks"]
    monkeypatch.chdir(task_dir)  # to which plain lm-eval takes the data's paths
    model = HFLM(pretrained=str(tmp_path / "run/quantized"), device="cpu", batch_size=4, dtype="float32")
    manager = TaskManager(include_path=str(task_dir), include_defaults=False)
    theirs: dict[str, Any] = simple_evaluate(model, tasks=["words"], task_manager=manager)
    assert theirs["results"]["words"]["acc,none"] == ours["words"]["acc"]
