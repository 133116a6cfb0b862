"""Small models of the same code: their sizes, their kinds of layers, and that nothing else notices."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lors_cli.models import tiny


def skeleton(model_type: str, **settings: Any) -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings))


@pytest.mark.parametrize(
    "name", ["llama", "qwen3", "gemma3_text", "falcon", "opt", "phi3", "mamba2", "bart", "gpt_neo"]
)
@torch.no_grad()
def test_a_large_model_gets_small_and_runs(name: str) -> None:
    state = torch.get_rng_state()
    model = tiny.tiny(skeleton(name))
    assert model is not None
    assert torch.equal(torch.get_rng_state(), state)
    assert sum(parameter.numel() for parameter in model.parameters()) < tiny.SMALL
    ids = tiny.tokens(model, 2)
    logits = model(input_ids=ids, use_cache=False).logits
    assert logits.isfinite().all()
    changed = ids.clone()
    changed[:, 0] += 1
    moved = (model(input_ids=changed, use_cache=False).logits - logits)[:, -1].abs().max()
    assert moved > 1e-3  # the first token is felt at the last


def test_each_kind_of_layer_is_there() -> None:
    config = tiny.shrunk(AutoConfig.for_model("gemma3_text"))
    assert set(config.layer_types) == {"sliding_attention", "full_attention"}
    assert len(config.layer_types) == config.num_hidden_layers
    grouped = tiny.shrunk(AutoConfig.for_model("llama", num_key_value_heads=8))
    assert (grouped.num_attention_heads, grouped.num_key_value_heads) == (4, 2)
    assert tiny.shrunk(AutoConfig.for_model("llama")).num_key_value_heads == 4


def test_a_small_model_keeps_its_sizes() -> None:
    config = AutoConfig.for_model(
        "llama", hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=3, vocab_size=64
    )
    model = tiny.tiny(AutoModelForCausalLM.from_config(config))
    assert model is not None
    assert model.model.layers[2].mlp.up_proj.weight.shape == (40, 24)


def test_a_model_that_cannot_be_made_is_none() -> None:
    model = skeleton("llama")
    model.config.hidden_act = "unheard of"
    assert tiny.tiny(model) is None
