"""GGUF files: the converted model computes what the one computes that was written, or the file is refused by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from lors_cli.errors import RequestError
from lors_cli.models import source
from tests.models.gguf_writer import llama3_divisors, write

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 16}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def llama(**changes: Any) -> Any:
    return LlamaForCausalLM(LlamaConfig(**{**SIZES, **changes}))


@torch.no_grad()
def converted(model: Any, path: Path) -> Any:
    """The model that the file becomes, checked to compute what `model` does."""
    made = AutoModelForCausalLM.from_pretrained(source.resolve(str(path)))
    tokens = torch.randint(0, 64, (2, 50))
    assert torch.equal(model.eval()(tokens).logits, made.eval()(tokens).logits)
    return made


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({}, {"rope.dimension_count": 16}),
        ({"tie_word_embeddings": True}, {"expert_count": 0}),
        ({"rope_parameters": LINEAR}, {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}),
        (
            {"rope_parameters": YARN},
            {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 16},
        ),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, {"rope.scaling.type": "none"}),
        ({"rms_norm_eps": 0.01}, {"attention.key_length": 16, "attention.value_length": 16}),
    ],
    ids=["plain", "tied", "linear", "yarn", "theta", "epsilon"],
)
def test_llama(tmp_path: Path, changes: dict[str, Any], keys: dict[str, Any]) -> None:
    model = llama(**changes)
    converted(model, write(model, tmp_path / "m.gguf", "llama", keys))


@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("factor", [8.0, 32.0])
@pytest.mark.parametrize("others", [(1.0, 4.0, 8192), (1.0, 4.0, 4096), (1.0, 8.0, 8192)])
def test_llama3_scaling_is_found_in_the_divisors(
    tmp_path: Path, width: int, factor: float, others: tuple[float, float, int]
) -> None:
    low, high, context = others
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": context,
    }
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": width, "num_hidden_layers": 1}
    model = llama(**heads, hidden_size=width, max_position_embeddings=131072, rope_parameters=rope)
    divisors = {"rope_freqs.weight": llama3_divisors(rope, width)}
    made = converted(model, write(model, tmp_path / "m.gguf", "llama", {"rope.dimension_count": width}, divisors))
    assert torch.equal(made.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq)
    assert made.config.rope_parameters == rope


def test_head_widths_thetas_and_scales_of_other_architectures(tmp_path: Path) -> None:
    width = {"attention.key_length": 32, "attention.value_length": 32}
    theta = {"rope_theta": 1e6, "rope_type": "default"}
    qwen = Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=32, rope_parameters=theta))
    converted(qwen, write(qwen, tmp_path / "qwen.gguf", "qwen3", width))
    caps = {"attn_logit_softcapping": 20.0, "final_logit_softcapping": 10.0}
    gemma = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8}
    gemma2 = Gemma2ForCausalLM(Gemma2Config(**SIZES, **gemma, **caps))
    converted(gemma2, write(gemma2, tmp_path / "g2.gguf", "gemma2", {**width, "attention.sliding_window": 8, **caps}))
    local = {"rope_theta": 10000.0, "rope_type": "default"}
    ropes = {"full_attention": {**LINEAR, "rope_theta": 1e6}, "sliding_attention": local}
    gemma3 = Gemma3ForCausalLM(Gemma3TextConfig(**{**SIZES, **gemma, "num_hidden_layers": 6}, rope_parameters=ropes))
    scaling = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
    keys = {**width, "attention.sliding_window": 8, **scaling}
    converted(gemma3, write(gemma3, tmp_path / "g3.gguf", "gemma3", keys))


def test_longrope(tmp_path: Path) -> None:
    factors = {"long_factor": [1.5 + i / 8 for i in range(8)], "short_factor": [1 + i / 16 for i in range(8)]}
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 32, **factors}
    limits = {"original_max_position_embeddings": 32, "sliding_window": 20, "pad_token_id": 0}
    model = Phi3ForCausalLM(Phi3Config(**SIZES, **limits, rope_parameters=rope))
    lists = {f"rope_factors_{name}.weight": factors[f"{name}_factor"] for name in ("long", "short")}
    keys = {
        "rope.scaling.original_context_length": 32,
        "rope.scaling.attn_factor": model.model.rotary_emb.attention_scaling,
        "attention.sliding_window": 20,
    }
    converted(model, write(model, tmp_path / "m.gguf", "phi3", keys, lists))


@pytest.mark.parametrize(
    ("change", "got"),
    [
        ({"keys": {"attention.magic": 3}}, "llama.attention.magic = 3"),
        ({"keys": {"expert_count": 8}}, "llama.expert_count = 8"),
        ({"keys": {"logit_scale": 0.5}}, "llama.logit_scale = 0.5"),
        ({"keys": {"attn_logit_softcapping": 30.0}}, "llama.attn_logit_softcapping"),
        ({"keys": {"rope.scaling.type": "su"}}, None),
        ({"keys": {"rope.scaling.type": "su", "rope.scaling.factor": 2.0}}, "rope.scaling.type = 'su'"),
        ({"keys": {"rope.scaling.yarn_log_multiplier": 0.1}}, "rope.scaling.yarn_log_multiplier"),
        ({"keys": {"rope.scaling.attn_factor": 1.2}}, "rope.scaling.attn_factor"),
        ({"keys": {"rope.dimension_count": 8}}, "self_attn.k_proj.weight"),
        ({"extra": {"rope_freqs.weight": [1, 1, 3, 1, 8, 8, 8, 8]}}, "rope_freqs.weight"),
        ({"extra": {"rope_factors_long.weight": [1] * 8}}, "rope_factors_long.weight"),
        ({"extra": {"blk.0.attn_q.bias": [0] * 64}}, "the tensor blk.0.attn_q.bias"),
        ({"split": "stablelm2"}, "tokenizer.ggml.pre = 'stablelm2'"),
        ({"split": "llama-bpe"}, None),
        ({"without": "attention.head_count_kv"}, "no llama.attention.head_count_kv"),
        ({"without": "feed_forward_length"}, "no llama.feed_forward_length"),
    ],
)
def test_what_the_model_would_not_compute_with_is_named(
    tmp_path: Path, change: dict[str, Any], got: str | None
) -> None:
    model = llama()
    path = write(model, tmp_path / "m.gguf", "llama", **change)
    if got is None:  # a kind of scaling without a factor changes nothing
        converted(model, path)
        return
    with pytest.raises(RequestError) as caught:
        source.resolve(str(path), "prune.input")
    assert got in str(caught.value)
    assert str(path) in str(caught.value)
    assert [path.name for path in (tmp_path / "cache/lors").iterdir()] == [".lock"]


def test_one_part_of_a_split_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gguf

    prepare: Callable[..., None] = gguf.GGUFWriter.write_header_to_file

    def write_header(self: Any) -> None:
        self.add_uint16("split.count", 2)
        prepare(self)

    monkeypatch.setattr(gguf.GGUFWriter, "write_header_to_file", write_header)
    path = write(llama(), tmp_path / "m-00001-of-00002.gguf", "llama")
    with pytest.raises(RequestError, match="one of 2 parts"):
        source.resolve(str(path))
