"""GGUF files as llama.cpp's converter writes them, from tiny transformers models."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.qkv_proj": "attn_qkv",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
GEMMA = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def write(
    model: Any,
    path: Path,
    architecture: str,
    keys: dict[str, Any] | None = None,
    extra: dict[str, Any] | None = None,
    *,
    without: str | None = None,
    split: str = "default",
) -> Path:
    """Write `model` with these keys under its architecture's name and these further tensors."""
    from gguf import GGUFWriter

    config = model.config
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    given: dict[str, Any] = {
        "context_length": config.max_position_embeddings,
        "block_count": config.num_hidden_layers,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.freq_base": float(rope["rope_theta"]),
        "vocab_size": config.vocab_size,
        **(keys or {}),
    }
    given.pop(without or "", None)
    writer = GGUFWriter(path, architecture)
    add = {str: writer.add_string, float: writer.add_float32, int: writer.add_uint32}
    for name, value in given.items():
        add[type(value)](f"{architecture}.{name}", value)
    tokens = [chr(33 + number) for number in range(config.vocab_size - 1)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list([*tokens, tokens[0] + tokens[1]])
    writer.add_token_types([1] * config.vocab_size)
    writer.add_token_merges([f"{tokens[0]} {tokens[1]}"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    for name, tensor in model.state_dict().items():
        if name != "lm_head.weight" or not config.tie_word_embeddings:
            writer.add_tensor(*_stored(name, tensor, config, architecture))
    for name, numbers in (extra or {}).items():
        writer.add_tensor(name, np.asarray(numbers, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _stored(name: str, tensor: Tensor, config: Any, architecture: str) -> tuple[str, Any]:
    module, kind = name.rsplit(".", 1)
    if architecture == "llama" and module.endswith(("q_proj", "k_proj")):
        heads = config.num_attention_heads if module.endswith("q_proj") else config.num_key_value_heads
        tensor = tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(tensor.shape)
    if architecture.startswith("gemma") and module.endswith("norm"):
        tensor = tensor + 1
    if module in OUTSIDE:
        return f"{OUTSIDE[module]}.{kind}", tensor.contiguous().numpy()
    _, _, block, place = module.split(".", 3)
    names = {**NAMES, **GEMMA} if architecture.startswith("gemma") else NAMES
    return f"blk.{block}.{names[place]}.{kind}", tensor.contiguous().numpy()


def llama3_divisors(rope: dict[str, Any], width: int) -> list[float]:
    """What llama.cpp's converter stores of llama3's scaling, one number for each pair of dimensions."""
    context, low, high = (rope[f"{name}"] for name in ("original_max_position_embeddings", *FREQUENCIES))
    divisors = []
    for frequency in 1 / rope["rope_theta"] ** (torch.arange(0, width, 2, dtype=torch.float32) / width):
        wavelength = 2 * math.pi / float(frequency)
        if wavelength < context / high:
            divisors.append(1.0)
        elif wavelength > context / low:
            divisors.append(rope["factor"])
        else:
            smooth = (context / wavelength - low) / (high - low)
            divisors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return divisors


FREQUENCIES = ("low_freq_factor", "high_freq_factor")
