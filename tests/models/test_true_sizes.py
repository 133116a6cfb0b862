"""Smaller models whose config says how large they are: plain transformers loads them, with our logits."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM
from typer.testing import Result

from lors_cli.models import load, structure, true_sizes
from lors_cli.models.structure import Kept, Structure
from tests.models.test_structure import zeroed

Lors = Callable[..., Result]
ALIKE = {"method": "structured_random", "ratio": 0.5, "keep_first": 0, "keep_last": 0}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(torch.arange(40)[None]).logits
    return result


@pytest.mark.parametrize("architecture", ["Llama", "Mistral", "Gemma", "Gemma2", "Qwen3", "Qwen2"])
def test_an_architecture_takes_its_sizes_from_the_config(tmp_path: Path, architecture: str) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "intermediate_size": 40, "num_hidden_layers": 2, "vocab_size": 64}
    config = getattr(transformers, f"{architecture}Config")(**sizes, num_attention_heads=8, num_key_value_heads=4)
    model = getattr(transformers, f"{architecture}ForCausalLM")(config)
    model.save_pretrained(tmp_path / "original")
    kept = [Kept([0, 2, 3], [*range(7, 40)]), Kept([1, 2, 3], [*range(33)])]
    smaller = Structure(structure.sizes(model, "model"), kept, "", 0)
    found = true_sizes.of(model, smaller)
    if architecture == "Qwen2":  # which derives the width of a head from the others
        assert found is None
        return
    assert found == {
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "head_dim": smaller.sizes.head_width,
        "intermediate_size": 33,
    }
    (tmp_path / "smaller").mkdir()
    structure.write_weights(tmp_path / "original", tmp_path / "smaller", smaller, torch.float32)
    load.copy_config(tmp_path / "original", tmp_path / "smaller", model, sizes=found)
    plain, ours = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "smaller"),
        load.load_model(tmp_path / "smaller", "float32", torch.device("cpu")),
    )
    assert torch.equal(logits(plain), logits(ours))
    assert torch.allclose(logits(plain), logits(zeroed(tmp_path / "original", smaller)), atol=1e-5)
    uneven = Structure(smaller.sizes, [kept[0], Kept([0], [1])], "", 0)
    assert true_sizes.of(model, uneven) is None


def test_sizes_that_transformers_refuses_are_loaded_by_lors(
    lors: Lors, write_config: Callable[..., Path], make_model: Callable[..., Path], tmp_path: Path
) -> None:
    """Three heads do not divide a hidden size of 64, which Llama's config checks whatever head_dim says."""
    model = make_model(tmp_path / "four", hidden_size=64, num_attention_heads=4, num_key_value_heads=4)
    config = write_config(model=str(model), prune={**ALIKE, "ratio": 0.25})
    for command in (["prune", config, "--dry-run"], ["prune", config]):
        said = " ".join(lors(*command).output.split())
        assert "3 attention groups" in said
        assert "multiple of the number of attention heads (3)" in said
        assert "lors loads the model" in said
    pruned = tmp_path / "run/pruned"
    assert json.loads((pruned / "config.json").read_text())["num_attention_heads"] == 4
    assert "load_model" in (pruned / "README.md").read_text()
    smaller = structure.read(pruned)
    assert smaller
    ours = load.load_model(pruned, "float32", torch.device("cpu"))
    assert torch.allclose(logits(ours), logits(zeroed(model, smaller)), atol=1e-6)


def test_a_run_with_blocks_that_are_alike(
    lors: Lors, write_config: Callable[..., Path], dense: Path, tmp_path: Path
) -> None:
    """Pruned, trained, merged, recovered and packed like any smaller model, and loaded like any model."""
    spread = {**ALIKE, "keep_last": 1, "uniform": True}
    config = write_config(prune=spread, train__method="lora", train__max_steps=1, recover={})
    plan = " ".join(lors("prune", config, "--dry-run").stdout.split())
    assert "2 of 2 blocks keep 2 attention groups and 48 MLP channels" in plan
    assert "plain transformers loads the model" in plan
    lors("prune", config, "prune.keep_last=0", "prune.uniform=false")
    run = tmp_path / "run"
    written = json.loads((run / "pruned/config.json").read_text())
    assert [written[key] for key in ("num_attention_heads", "num_key_value_heads", "intermediate_size")] == [2, 1, 32]
    smaller = structure.read(run / "pruned")
    assert smaller
    plain = AutoModelForCausalLM.from_pretrained(run / "pruned")
    assert torch.equal(logits(plain), logits(load.load_model(run / "pruned", "float32", torch.device("cpu"))))
    assert torch.allclose(logits(plain), logits(zeroed(dense, smaller)), atol=1e-6)
    assert "AutoModelForCausalLM.from_pretrained" in (run / "pruned/README.md").read_text()
    lors("train", config)
    lors("recover", config)
    lors("merge", config)
    assert AutoModelForCausalLM.from_pretrained(run / "merged").config.intermediate_size == 64
    said = lors(
        "merge",
        config,
        f"merge.adapter={run / 'adapter'}",
        f"merge.input={run / 'pruned'}",
        "output_dir=" + str(tmp_path / "own"),
    ).stderr
    assert "loads it in transformers" in said
    merged = tmp_path / "own/merged"
    assert torch.equal(
        logits(AutoModelForCausalLM.from_pretrained(merged)),
        logits(load.load_model(merged, "float32", torch.device("cpu"))),
    )
    lors("pack", merged, tmp_path / "packed")
    lors("unpack", tmp_path / "packed", tmp_path / "again")
    for name in ("model.safetensors", "config.json", "structure.json"):
        assert (tmp_path / "again" / name).read_bytes() == (merged / name).read_bytes()
    assert "32x32" in lors("inspect", merged).stdout


def test_a_uniform_ratio_has_to_leave_something(lors: Lors, write_config: Callable[..., Path], tmp_path: Path) -> None:
    config = write_config(prune={**ALIKE, "ratio": 0.6, "uniform": True})
    said = " ".join(lors("prune", config, status=2).stderr.split())
    assert "at least one of 2 attention groups" in said
    assert "write prune.ratio: 0.5 or less" in said
    lors("prune", config, "prune.ratio=0.5", "--dry-run")
