"""A tokenizer and a Llama so small that whole pipelines take seconds."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lors_cli.data import builtin

CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 384 tokens, trained on the built-in text."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=384, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(list(builtin.texts("test")), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>", pad_token="<|end|>")
    fast.chat_template = CHAT_TEMPLATE
    return fast


def make(
    tokenizer: PreTrainedTokenizerFast,
    path: Path,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    shard: str = "5GB",
    **changes: Any,
) -> Path:
    """Write a random two-block Llama with grouped-query heads, and its tokenizer, to a directory."""
    torch.manual_seed(seed)
    settings = {
        "vocab_size": 384,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        "eos_token_id": 0,
        "bos_token_id": None,
        "pad_token_id": 0,
    }
    LlamaForCausalLM(LlamaConfig(**{**settings, **changes})).to(dtype).save_pretrained(path, max_shard_size=shard)
    tokenizer.save_pretrained(path)
    return path


def config(model: str, output_dir: str) -> dict[str, Any]:
    """A config of the whole job on the model."""
    text = {"dataset": "python-topics", "sequence_length": 32}
    return {
        "model": model,
        "output_dir": output_dir,
        "dtype": "float32",
        "device": "cpu",
        "prune": {"method": "wanda", "sparsity": "2:4", "calibration": {**text, "samples": 8}},
        "train": {
            "method": "lors",
            "rank": 4,
            "dataset": {"path": "python-topics", "limit": 3},
            "sequence_length": 32,
            "batch_size": 4,
            "learning_rate": 1e-2,
            "max_steps": 4,
        },
        "merge": {},
        "eval": {"perplexity": {**text, "samples": 4}},
    }
