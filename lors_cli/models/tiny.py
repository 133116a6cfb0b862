"""A model of the same code with small sizes and random weights, on which an architecture's behaviour is tried out.

What a model does with its blocks and its positions is in its code, not in its weights: a few layers of small width show
it in a fraction of a second, before anything is fetched.
"""

import logging
import re
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

log = logging.getLogger(__name__)

SMALL = 1_000_000  # parameters of a model that is small enough as it is
VOCABULARY = 128

_EQUAL = "as many as heads"  # key/value heads: all of the four, or half
# What the integers of a config are called, and what they become; the first pattern that fits counts. The widths agree:
# heads x width of a head = hidden size = width of a state-space layer. The others are upper limits.
_EXACT: list[tuple[str, Any]] = [
    (r"(.*_)?(num_)?(key_value|kv)_heads|kv_n_heads|.*num_key_heads", _EQUAL),
    (r"(.*_)?(n|num)_(.*_)?heads?|.*attention_heads|num_query_groups", 4),
    (r"(.*_)?head_?dim|d_kv|d_head|dim_head|kv_channels|attention_head_size|mamba_d_head", 16),
    (r"(.*_)?(hidden_size|d_model|n_embd|embedding_size|embed_dim|embedding_dim)(_.*)?", 64),
    (r"dim|dim_model|emb_dim|word_embed_proj_dim|lru_width|mamba_d_ssm", 64),
    (r"(.*_)?expand", 1),
]
_AT_MOST: list[tuple[str, int]] = [
    (r"(.*_)?vocab_size(_per_layer_input)?|ngram_vocab_size_base|codebook_size|split_ngram_parts", VOCABULARY),
    (r"(.*_)?experts_per_tok(en)?|top_k(_experts)?|moe_top_?k|moe_k", 2),
    (r"(.*_)?(n|num)_group|topk_group|num_expert_group|(mamba_)?n_?groups|o_groups", 1),
    (r"(num|n)_(routed_|local_)?experts|moe_num_experts", 4),
    (r"(.*_)?(intermediate_size|ffn_dim|ffn_hidden_size)(_.*)?|n_inner|d_ff|dff|dim_ff|d_inner|.*feed_forward.*", 128),
    (r"mlp_dim|(.*_)?rank", 16),
    (r"rotary_dim", 8),
    (r"(.*_)?(d_state|state_size)", 16),
    (r"(.*_)?window(_size)?|attention_chunk_size|local_attention", 8),
    (r"(.*_)?max_position_embeddings|n_positions|n_ctx|max_seq_len|max_(source|target)_positions", 256),
    (r".*layer_period", 2),
    (r"first_k_dense_replace|num_dense_layers|moe_layer_start_index", 1),
    (r".*layer_offset", 1),
]
_DEPTHS = re.compile(r"(num_)?(.*_)?(hidden_|encoder_|decoder_)?layers|n_layers?|depth|num_blocks|num_layers_per_stack")
_TOKENS = re.compile(r"(.*_)?token_(id|index)")


def tiny(model: PreTrainedModel) -> PreTrainedModel | None:
    """A small model of the class of `model` (whose weights are not read), in eval mode; None where it cannot be made.

    float32 on the CPU. Its linears and embeddings are drawn so wide that every part of the model matters.
    """
    try:
        config = model.config
        if sum(parameter.numel() for parameter in model.parameters()) > SMALL:
            config = shrunk(config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made: PreTrainedModel = type(model)._from_config(config, dtype=torch.float32)
            for module in made.modules():
                if isinstance(module, nn.Linear):
                    nn.init.normal_(module.weight, std=module.in_features**-0.5)
                elif isinstance(module, nn.Embedding):
                    nn.init.normal_(module.weight)
    except Exception as error:  # the code of any model, with sizes that it was not made for
        log.debug("%s in tiny form cannot be made: %s: %s", type(model).__name__, type(error).__name__, error)
        return None
    return made.eval()


def runs(model: PreTrainedModel) -> bool:
    """Whether a tiny model can be run, in the mode that it is in."""
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            model(input_ids=tokens(model, 1), use_cache=False)
    except Exception as error:  # the code of any model, with sizes that it was not made for
        log.debug("%s in tiny form cannot be run: %s", type(model).__name__, error)
        return False
    return True


def tokens(model: PreTrainedModel, windows: int, length: int = 16) -> Tensor:
    """Token ids (windows, length) for a tiny model: always the same, and none of the first, which are often special."""
    size = model.config.get_text_config().vocab_size
    return torch.randint(size // 8, size // 2, (windows, length), generator=torch.Generator().manual_seed(0))


def shrunk(config: Any) -> Any:
    """A config of the same class and kind with small sizes: each kind of layer that it has is there at least once."""
    content = config.to_dict()
    for key in ("model_type", "transformers_version", "architectures", "dtype", "auto_map", "quantization_config"):
        content.pop(key, None)
    return type(config)(**_shrunk(content))


def _shrunk(content: dict[str, Any]) -> dict[str, Any]:
    depths = {key: value for key, value in content.items() if _is_depth(key, value)}
    by_layer = {
        key: value
        for key, value in content.items()
        if isinstance(value, list) and len(value) > 1 and len(value) in depths.values()
    }
    kept = _layers_that_show_all(list(by_layer.values()))
    heads = {value for key, value in content.items() if _whole(value) and _size(key) == 4}
    small: dict[str, Any] = {}
    for key, value in content.items():
        if key == "per_layer_config" and isinstance(value, dict):
            value = {layer: sizes for layer, sizes in value.items() if int(layer) < kept}
        if isinstance(value, dict):
            value = _shrunk(value)
        elif key == "num_kv_shared_layers" and value:
            value = value * kept // max(depths.values())
        elif key in depths:
            value = min(value, kept)
        elif key in by_layer:
            value = value[:kept]
        elif _whole(value):
            size = _size(key)
            value = (4 if value in heads else min(value, 2)) if size is _EQUAL else size or _limited(key, value)
        small[key] = value
    if {"qk_nope_head_dim", "qk_rope_head_dim"} <= small.keys():
        small["qk_head_dim"] = small["qk_nope_head_dim"] + small["qk_rope_head_dim"]
    _shorten_rotary_factors(small)
    return small


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_depth(key: Any, value: Any) -> bool:
    some = ("num_kv_shared_layers", "num_dense_layers")  # of the layers
    return _whole(value) and key not in some and bool(_DEPTHS.fullmatch(str(key)))


def _layers_that_show_all(lists: list[list[Any]]) -> int:
    """How many of the first layers have every value that a list has by layer, where it has a few: at least two."""
    kinds = [[str(value) for value in values] for values in lists if len({str(value) for value in values}) <= 4]
    return max([2, *(values.index(value) + 1 for values in kinds for value in set(values))])


def _size(key: Any) -> Any:
    return next((size for pattern, size in _EXACT if re.fullmatch(pattern, str(key))), None)


def _limited(key: Any, value: int) -> int:
    if _TOKENS.fullmatch(str(key)) and value >= VOCABULARY:
        return 1
    limit = next((limit for pattern, limit in _AT_MOST if re.fullmatch(pattern, str(key))), value)
    return min(value, limit)


def _shorten_rotary_factors(content: dict[str, Any]) -> None:
    """Scaling factors by frequency: as many as a head of the small width has."""
    rope = content.get("rope_parameters") or content.get("rope_scaling")
    for key in ("short_factor", "long_factor"):
        if isinstance(rope, dict) and isinstance(rope.get(key), list):
            partial = rope.get("partial_rotary_factor") or content.get("partial_rotary_factor") or 1
            rope[key] = rope[key][: int(16 * partial) // 2]
