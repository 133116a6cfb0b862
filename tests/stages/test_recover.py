"""LoRAM: trained on a smaller model, used on the original."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from typer.testing import Result

from lors_cli.artifacts import adapter_file
from lors_cli.models import load, structure
from tests.models.test_structure import RANDOM, TAYLOR, zeroed

Lors = Callable[..., Result]
WriteConfig = Callable[..., Path]
IDS = torch.arange(40)[None]
LORA = {"train__method": "lora", "recover": {}}


@pytest.mark.parametrize("prune", [RANDOM, TAYLOR])
def test_the_recovered_adapter_is_a_peft_adapter_of_the_original(
    lors: Lors, write_config: WriteConfig, dense: Path, tmp_path: Path, prune: dict[str, Any]
) -> None:
    lors("run", write_config(prune=prune, eval__models=["dense", "merged"], **LORA))
    with torch.no_grad():
        check_recovered(dense, tmp_path / "run")


def check_recovered(dense: Path, run: Path) -> None:
    recovered = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(dense), run / "recovered")
    merged = AutoModelForCausalLM.from_pretrained(run / "merged")
    assert torch.allclose(recovered(IDS).logits, merged(IDS).logits, atol=1e-5)
    assert not torch.allclose(merged(IDS).logits, AutoModelForCausalLM.from_pretrained(dense)(IDS).logits, atol=1e-3)
    # on the original without the removed parts it is what was trained
    smaller = structure.read(run / "pruned")
    assert smaller
    small = load.load_model(run / "pruned", "float32", torch.device("cpu"))
    trained = adapter_file.load(run / "adapter", "")
    for module, named in trained.modules.items():
        small.get_submodule(module).weight += trained.alpha / trained.rank * named["lora_B"] @ named["lora_A"]
    without = PeftModel.from_pretrained(zeroed(dense, smaller), run / "recovered")
    kept = without.merge_and_unload()
    assert torch.allclose(small(IDS).logits, kept(IDS).logits, atol=1e-5)
    # and what was removed has no update
    content = adapter_file.load(run / "recovered", "")
    for module, named in content.modules.items():
        for kept_places, tensor, along in ((smaller.columns(module), "lora_A", 1), (smaller.rows(module), "lora_B", 0)):
            if kept_places is not None:
                gone = torch.ones(named[tensor].shape[along], dtype=torch.bool)
                gone[kept_places] = False
                assert not named[tensor].index_select(along, gone.nonzero().squeeze(1)).any()


def test_a_model_with_bf16_weights_two_shards_and_an_untied_head(
    lors: Lors, write_config: WriteConfig, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    model = make_model(tmp_path / "m", dtype=torch.bfloat16, shard="60KB", tie_word_embeddings=False)
    assert len(list(model.glob("model-*.safetensors"))) >= 2
    lors("run", write_config(model=str(model), dtype="auto", prune=TAYLOR, **LORA))
    run = tmp_path / "run"
    small = load.load_model(run / "pruned", "auto", torch.device("cpu"))
    assert {parameter.dtype for parameter in small.parameters()} == {torch.bfloat16}
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), run / "recovered")
    assert AutoModelForCausalLM.from_pretrained(run / "merged").dtype == torch.bfloat16


@pytest.mark.parametrize(("tied", "shard"), [(True, "5GB"), (True, "60KB"), (False, "60KB")])
def test_the_head_is_adapted_where_asked(
    lors: Lors, write_config: WriteConfig, make_model: Callable[..., Path], tmp_path: Path, tied: bool, shard: str
) -> None:
    model = make_model(tmp_path / "m", shard=shard, tie_word_embeddings=tied)
    lors("run", write_config(model=str(model), prune=RANDOM, train__target_modules=["*", "lm_head"], **LORA))
    run = tmp_path / "run"
    content = adapter_file.load(run / "recovered", "")
    assert content.modules["lm_head"]["lora_B"].any()
    recovered = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), run / "recovered")
    merged, info = AutoModelForCausalLM.from_pretrained(run / "merged", output_loading_info=True)
    assert not any(info.values())
    with torch.no_grad():
        assert torch.allclose(recovered(IDS).logits, merged(IDS).logits, atol=1e-5)
    dense = AutoModelForCausalLM.from_pretrained(model)
    embeddings = [one.get_input_embeddings().weight for one in (dense, merged)]
    assert torch.equal(*embeddings)
    assert not torch.equal(embeddings[1], merged.lm_head.weight)
    assert "lm_head" in lors("inspect", run / "recovered").stdout


def test_with_nothing_removed_it_is_lora_bit_for_bit(lors: Lors, write_config: WriteConfig, tmp_path: Path) -> None:
    same = {"train__method": "lora", "train__target_modules": ["*"]}
    whole = write_config(train__input=json.loads(write_config().read_text())["model"], prune=..., **same)
    lors("train", whole)
    plain = load_file(tmp_path / "run/adapter/adapter_model.safetensors")
    config = write_config(output_dir=str(tmp_path / "loram"), prune={**RANDOM, "ratio": 0.0}, **same, recover={})
    for stage in ("prune", "train", "recover"):
        lors(stage, config)
    recovered = load_file(tmp_path / "loram/recovered/adapter_model.safetensors")
    assert recovered.keys() == plain.keys()
    assert all(tensor.equal(plain[name]) for name, tensor in recovered.items())


def test_without_recovery_the_small_model_takes_its_adapter(
    lors: Lors, write_config: WriteConfig, tmp_path: Path
) -> None:
    lors("run", write_config(prune=RANDOM, train__method="lora"))
    merged = load.load_model(tmp_path / "run/merged", "float32", torch.device("cpu"))
    assert merged.get_submodule("model.layers.0.mlp.up_proj").weight.shape == (32, 32)
    assert set(json.loads((tmp_path / "run/eval/results.json").read_text())["models"]) == {"dense", "pruned", "merged"}


@pytest.mark.parametrize("sparsity", ["4:8", 0.5])
def test_where_pruning_left_zeros_recovery_keeps_the_adapter(
    lors: Lors, write_config: WriteConfig, tmp_path: Path, sparsity: object
) -> None:
    lors("run", write_config(prune__sparsity=sparsity, **LORA))
    names = ("adapter/adapter_model.safetensors", "recovered/adapter_model.safetensors")
    before, after = (load_file(tmp_path / "run" / name) for name in names)
    assert before.keys() == after.keys()
    assert all(tensor.equal(after[name]) for name, tensor in before.items())


def test_what_does_not_belong_together_is_refused(
    lors: Lors, write_config: WriteConfig, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    config = write_config(prune=RANDOM, **LORA)
    lors("prune", config)
    lors("train", config)
    other = make_model(tmp_path / "other", seed=5)
    assert "another one (its digest differs)" in lors("recover", config, f"model={other}", status=2).stderr
    lors("prune", config, "seed=7", f"output_dir={tmp_path / 'second'}")
    said = lors("recover", config, f"recover.input={tmp_path / 'second/pruned'}", status=2).stderr
    assert "made on another model" in said
    assert not (tmp_path / "run/recovered").exists()
    lors_adapter = write_config(prune=RANDOM, train__method="lors", recover={})
    assert "an adapter of lora" in lors("run", lors_adapter, "--dry-run", status=2).stderr
