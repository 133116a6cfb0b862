"""Models whose files do not fit, and whether the remedies that messages name work."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from lors_cli.artifacts.model_files import SINGLE
from lors_cli.errors import RequestError
from lors_cli.models import load
from lors_cli.models.weights import Weights, open_weights
from tests.models.test_weights import HEAD, SIZES, change, llama, logits, prune_nothing, refusal, set_config, sharded


def test_a_missing_head_is_never_made_up(tmp_path: Path, lors: Callable[..., Any]) -> None:
    model = llama(tmp_path / "model", tied=False)
    change(tmp_path / "model", lambda content: content.pop(HEAD))
    assert "tie_word_embeddings: true" in refusal(tmp_path / "model").remedy
    set_config(tmp_path / "model", tie_word_embeddings=True)  # the remedy
    prune_nothing(lors, tmp_path / "model", tmp_path / "run")
    model.lm_head.weight = model.model.embed_tokens.weight
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "run/pruned")), logits(model))


def test_the_remedy_for_tensors_that_the_model_does_not_have(tmp_path: Path, lors: Callable[..., Any]) -> None:
    llama(tmp_path / "model")
    change(tmp_path / "model", lambda content: content.update({"score.weight": torch.ones(2, 32)}))
    refusal(tmp_path / "model")
    AutoModelForCausalLM.from_pretrained(tmp_path / "model").save_pretrained(tmp_path / "new")
    prune_nothing(lors, tmp_path / "new", tmp_path / "run")


@pytest.mark.parametrize(
    ("part", "before"),
    [
        ("module.", ""),
        ("_orig_mod.", ""),
        ("_orig_mod.", "model.layers.1."),
        ("base_model.model.", ""),
        ("language_model.", "model."),
    ],
)
@pytest.mark.parametrize("tied", [True, False])
def test_the_remedy_for_the_names_of_a_wrapped_model(
    tmp_path: Path, lors: Callable[..., Any], part: str, before: str, tied: bool
) -> None:
    model = llama(tmp_path / "model", tied=tied)
    wrapped = {n.replace(before, before + part, 1) if before in n else n: t for n, t in model.state_dict().items()}

    def wrap(content: dict[str, torch.Tensor]) -> None:
        content.clear()
        content.update(wrapped)
        if tied:
            content.popitem()

    change(tmp_path / "model", wrap)
    remedy = refusal(tmp_path / "model").remedy
    assert f"the names have {part!r} too much" in remedy
    assert f"for each FILE of {SINGLE}" in remedy
    (call,) = re.findall(r"call (save_file\(.*\)) of safetensors.torch", remedy)
    eval(call, {"load_file": load_file, "save_file": save_file, "FILE": tmp_path / "model" / SINGLE})  # noqa: S307
    prune_nothing(lors, tmp_path / "model", tmp_path / "run")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "run/pruned")), logits(model))


def test_tensors_that_loading_joins(tmp_path: Path) -> None:
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, num_key_value_heads=2, **experts))
    model.save_pretrained(tmp_path)
    with pytest.raises(RequestError, match="save_original_format=False") as caught:
        open_weights(tmp_path, load.skeleton(tmp_path), "model")
    assert "experts.0" in caught.value.problems[0].got
    assert torch.equal(
        logits(load.load_model(tmp_path, "auto", torch.device("cpu"))), logits(model)
    )  # transformers does
    model.save_pretrained(tmp_path / "new", save_original_format=False)  # the remedy
    assert Weights(tmp_path / "new", load.skeleton(tmp_path / "new")).fused == []
    open_weights(tmp_path / "new", load.skeleton(tmp_path / "new"), "model")


def test_a_damaged_model_is_a_wrong_request(tmp_path: Path) -> None:
    sharded(tmp_path)
    skeleton = load.skeleton(tmp_path)
    first = min(tmp_path.glob("*.safetensors"))
    whole = first.read_bytes()
    for text in (whole[:-1], None):
        first.unlink()
        if text:
            first.write_bytes(text)
        with pytest.raises(RequestError, match=first.name) as caught:
            open_weights(tmp_path, skeleton, "model")
        assert caught.value.problems[0].file == str(tmp_path)
