"""What the engine says of weights and inputs, usual and awkward ones."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tests.sequential.test_engine import Lors, WriteConfig


def test_the_log_has_a_line_for_every_linear(lors: Lors, write_config: WriteConfig, tmp_path: Path) -> None:
    lors("prune", write_config(prune__method="sparsegpt"))
    log = (tmp_path / "run/lors.log").read_text()
    line = next(line for line in log.splitlines() if "model.layers.1.mlp.down_proj: sparsity" in line)
    for part in ("sparsity 0.500000", "error 0.", "damping 0.01", "256 tokens", " s"):
        assert part in line
    assert log.count("tokens, ") >= 14


def test_awkward_weights_and_inputs(
    lors: Lors, write_config: WriteConfig, make_model: Callable[..., Path], jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    """An all-zero row, an input feature that is always zero, and a text of one token repeated."""
    model = make_model(tmp_path / "odd")
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.0.self_attn.q_proj.weight"][3] = 0
    tensors["model.layers.0.mlp.up_proj.weight"][5] = 0  # so that feature 5 of down_proj is always zero
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    data = jsonl([{"text": "a" * 4000}])
    for method in ("wanda", "ria", "sparsegpt"):
        for pattern in ("2:4", 0.5):
            config = write_config(
                model=str(model), prune__method=method, prune__sparsity=pattern, prune__calibration__dataset=str(data)
            )
            said = lors("prune", config, f"output_dir={tmp_path}/{method}{pattern}".replace(":", "")).stderr
            assert "different tokens, which tells little" in said


def test_weights_outside_the_blocks_are_looked_at_first(
    lors: Lors, write_config: WriteConfig, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    model = make_model(tmp_path / "odd")
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    failed = lors("prune", write_config(model=str(model)), status=1).stderr
    assert "model.norm.weight: NaN or infinity in its weights; check the model" in failed
    assert not (tmp_path / "run/.pruned.partial").exists()


def test_infinite_activations_name_the_block(
    lors: Lors, write_config: WriteConfig, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    model = make_model(tmp_path / "hot")
    tensors = load_file(model / "model.safetensors")
    for name in ("up_proj", "down_proj"):
        tensors[f"model.layers.0.mlp.{name}.weight"] *= 1e25
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    failed = lors("prune", write_config(model=str(model)), status=1).stderr
    assert "model.layers.0" in failed
    assert "NaN or infinity" in failed


def test_a_block_that_tells_channels_apart_is_not_permuted(
    lors: Lors, write_config: WriteConfig, dense: Path, tmp_path: Path
) -> None:
    """DiffLlama joins the values of two heads, so an order inside each head does not fold into ``v_proj``."""
    settings = {"vocab_size": 384, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8}
    torch.manual_seed(0)
    config = AutoConfig.for_model("diffllama", **settings, num_attention_heads=4, num_key_value_heads=2)
    model = tmp_path / "diffllama"
    AutoModelForCausalLM.from_config(config).save_pretrained(model)
    AutoTokenizer.from_pretrained(dense).save_pretrained(model)
    asked = write_config(model=str(model), prune__method="ria", prune__permute=True)
    assert "changes what the block computes" in lors("prune", asked, status=1).stderr
    lors("prune", asked, "prune.permute=false")
