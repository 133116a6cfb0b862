"""Which parameters are those of norms and biases, in models of many forms."""

from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from transformers import AutoConfig, AutoModelForCausalLM

from lors_cli.adapters import METHODS
from lors_cli.adapters.replace import replace_linears
from lors_cli.adapters.vectors import train_vectors
from lors_cli.errors import RequestError
from lors_cli.models import tiny, vectors
from lors_cli.models.linears import all_linears

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 96}
SIZES |= {"intermediate_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
# By model type: further options, the norms of a block, and the one after the blocks.
FORMS: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "llama": (GROUPED, ["input_layernorm.weight", "post_attention_layernorm.weight"], "model.norm.weight"),
    "qwen3": (
        GROUPED,
        [
            *("self_attn.q_norm.weight", "self_attn.k_norm.weight"),
            *("input_layernorm.weight", "post_attention_layernorm.weight"),
        ],
        "model.norm.weight",
    ),
    "gemma2": (
        GROUPED,
        [
            *("input_layernorm.weight", "post_attention_layernorm.weight"),
            *("pre_feedforward_layernorm.weight", "post_feedforward_layernorm.weight"),
        ],
        "model.norm.weight",
    ),
    "gpt_neox": (
        {},
        [
            *("input_layernorm.weight", "input_layernorm.bias"),
            *("post_attention_layernorm.weight", "post_attention_layernorm.bias"),
        ],
        "gpt_neox.final_layer_norm.weight gpt_neox.final_layer_norm.bias",
    ),
    "opt": (
        {"ffn_dim": 64, "word_embed_proj_dim": 32},
        [
            *("self_attn_layer_norm.weight", "self_attn_layer_norm.bias"),
            *("final_layer_norm.weight", "final_layer_norm.bias"),
        ],
        "model.decoder.final_layer_norm.weight model.decoder.final_layer_norm.bias",
    ),
    "phi": (
        {},
        ["input_layernorm.weight", "input_layernorm.bias"],
        "model.final_layernorm.weight model.final_layernorm.bias",
    ),
}


def skeleton(kind: str, **options: Any) -> Any:
    config = AutoConfig.for_model(kind, **{**SIZES, **options})
    with init_empty_weights(include_buffers=False):
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("kind", FORMS)
def test_every_norm_is_found_and_gets_a_gradient(kind: str) -> None:
    options, in_block, last = FORMS[kind]
    model = skeleton(kind, **options)
    found = vectors.find(model, ["norms"], [], "train.also")
    prefix = {"gpt_neox": "gpt_neox.layers", "opt": "model.decoder.layers"}.get(kind, "model.layers")
    assert set(found) == {f"{prefix}.{i}.{name}" for i in (0, 1) for name in in_block} | set(last.split())
    assert found.keys() <= model.state_dict().keys()
    whole = tiny.tiny(model)
    assert whole is not None
    names = list(all_linears(whole))
    replace_linears(whole, names, METHODS["lors"].adapter, rank=2, alpha=2)
    trained = train_vectors(whole, vectors.find(whole, ["norms"], names, "train.also"))
    whole.train()(input_ids=tiny.tokens(whole, 1), use_cache=False).logits.square().sum().backward()
    assert all(bool(vector.tensors()["value"].grad.any()) for vector in trained.values())  # type: ignore[union-attr]


def test_biases_are_those_of_the_adapted_linears() -> None:
    model = skeleton("llama", **GROUPED, attention_bias=True)
    names = ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"]
    assert list(vectors.find(model, ["biases"], names, "train.also")) == ["model.layers.0.self_attn.q_proj.bias"]
    both = vectors.find(model, ["biases", "norms"], names, "train.also")
    assert len(both) == 6


class WidthNorm(torch.nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(shape))


def test_what_a_rule_for_norms_does_not_fit_is_refused() -> None:
    with pytest.raises(RequestError, match="none"):  # its norms have no weights
        vectors.find(skeleton("olmo", **GROUPED), ["norms"], [], "train.also")
    with pytest.raises(RequestError, match="none"):
        vectors.find(skeleton("llama", **GROUPED), ["biases"], ["model.layers.0.mlp.up_proj"], "train.also")
    model = skeleton("llama", **GROUPED)
    model.model.layers[1].input_layernorm = WidthNorm(4, 8)
    with pytest.raises(RequestError, match=r"shape \(4, 8\)"):
        vectors.find(model, ["norms"], [], "train.also")
    model.model.layers[1].input_layernorm = model.model.layers[0].input_layernorm
    with pytest.raises(RequestError, match="one"):
        vectors.find(model, ["norms"], [], "train.also")
