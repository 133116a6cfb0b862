"""Blocks run one by one, from what was captured, give the states of the whole model: for every architecture."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lors_cli.models import linears
from lors_cli.sequential import replay

COMMON = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-3.1": {"model_type": "llama", "rope_parameters": LLAMA3_ROPE},
    "llama-tied": {"model_type": "llama", "tie_word_embeddings": True},
    "mistral": {"sliding_window": 8},
    "qwen2": {},
    "qwen3": {},
    "gemma2": {"sliding_window": 8, "query_pre_attn_scalar": 8},
    "phi3": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", list(ARCHITECTURES))
@torch.no_grad()
def test_replay_equals_the_whole_model(name: str, attention: str) -> None:
    if (name, attention) == ("gemma2", "sdpa"):
        pytest.skip("transformers has no sdpa attention for Gemma 2")
    settings = {"model_type": name, **COMMON, **ARCHITECTURES[name]}
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    batches = list(torch.randint(1, 64, (4, 16)).split(2))
    states: dict[int, torch.Tensor] = {}
    calls = replay.capture(model, dict(enumerate(batches)), states.__setitem__)
    _, blocks = linears.find_blocks(model)
    assert len(blocks) == 3
    outputs: list[list[torch.Tensor]] = [[] for _ in blocks]
    hooks = [
        block.register_forward_hook(
            lambda _m, _i, out, kept=kept: kept.append(out[0] if isinstance(out, tuple) else out)
        )
        for block, kept in zip(blocks, outputs, strict=True)
    ]
    for batch in batches:
        model(input_ids=batch, use_cache=False)
    for hook in hooks:
        hook.remove()
    for index, block in enumerate(blocks):
        for batch in range(len(batches)):
            states[batch] = calls.run(block, index, batch, states[batch])
            torch.testing.assert_close(states[batch], outputs[index][batch], rtol=0, atol=0)


def test_arguments_that_do_not_depend_on_the_tokens_are_kept_once() -> None:
    config = AutoConfig.for_model("llama", **COMMON)
    model = AutoModelForCausalLM.from_config(config).eval()
    batches = dict(enumerate(torch.randint(1, 64, (6, 16)).split(2)))
    calls = replay.capture(model, batches, lambda window, states: None)
    cosines = {id(calls.arguments[b][i][1]["position_embeddings"][0]) for b in range(3) for i in range(3)}
    assert len(cosines) == 1
