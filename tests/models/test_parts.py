"""Architectures whose linears have Llama's shapes: those whose parts cannot be removed are refused, by a trial."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from accelerate import init_empty_weights
from transformers import PreTrainedTokenizerFast
from typer.testing import Result

from lors_cli.errors import RequestError
from lors_cli.models import parts

SIZES = {"hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 384, "pad_token_id": 0}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}


def made(architecture: str, text: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{architecture}{text}Config")(**{**SIZES, **HEADS, **changes})
    return getattr(transformers, f"{architecture}ForCausalLM")(config)


@pytest.mark.parametrize(
    ("architecture", "text", "changes"),
    [
        ("Llama", "", {"attention_bias": True, "mlp_bias": True}),
        ("Llama", "", {"num_key_value_heads": 1}),
        ("Cohere", "", {}),
        ("Gemma3", "Text", {"head_dim": 16}),
        ("Granite", "", {}),
    ],
)
def test_parts_that_work_each_by_itself(architecture: str, text: str, changes: dict[str, Any]) -> None:
    parts.check(made(architecture, text, **changes), "model")


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("Olmo2", {}),
        ("DiffLlama", {"num_attention_heads": 8, "num_key_value_heads": 4}),
        ("Cohere", {"use_qk_norm": True}),
    ],
)
def test_parts_that_depend_on_each_other(architecture: str, changes: dict[str, Any]) -> None:
    with init_empty_weights():
        skeleton = made(architecture, "", **changes)
    with pytest.raises(RequestError, match=f"{architecture}ForCausalLM, which does not run without them"):
        parts.check(skeleton, "model")


def test_pruning_refuses_them_before_the_work(
    lors: Callable[..., Result],
    write_config: Callable[..., Path],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    made("Olmo2", "").save_pretrained(tmp_path / "olmo")
    tokenizer.save_pretrained(tmp_path / "olmo")
    prune = {"method": "structured_random", "ratio": 0.5, "keep_first": 0, "keep_last": 0}
    said = lors("prune", write_config(model=str(tmp_path / "olmo"), prune=prune), "--dry-run", status=2).stderr
    assert "work each by itself" in said
