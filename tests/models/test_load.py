"""Tokenizers and the models that they belong to."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    OPTConfig,
    OPTForCausalLM,
    OPTPreTrainedModel,
    PreTrainedTokenizerFast,
)

from lors_cli.errors import RequestError
from lors_cli.models import load


@pytest.mark.parametrize("special", [False, True])
def test_a_token_without_a_row(make_model: Callable[..., Path], tmp_path: Path, special: bool) -> None:
    path = make_model(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.add_tokens(["<new>", "<newer>"], special_tokens=special)
    tokenizer.save_pretrained(path)
    with pytest.raises(RequestError, match=r"'<new>' with the number 384 and 1 more") as caught:
        load.load_tokenizer(path, load.skeleton(path))
    assert "resize_token_embeddings(386)" in caught.value.problems[0].remedy
    model = AutoModelForCausalLM.from_pretrained(path)  # the remedy
    model.resize_token_embeddings(386)
    model.save_pretrained(path)
    load.load_tokenizer(path, load.skeleton(path))


def test_padding_rows_and_tokens_of_other_senses_are_fine(make_model: Callable[..., Path], tmp_path: Path) -> None:
    path = make_model(tmp_path / "model", vocab_size=512)
    load.load_tokenizer(path, load.skeleton(path))
    path = make_model(tmp_path / "text")
    tokenizer: Any = AutoTokenizer.from_pretrained(path, extra_special_tokens={"image_token": "<image>"})
    tokenizer.save_pretrained(path)
    assert len(tokenizer) == 385
    load.load_tokenizer(path, load.skeleton(path))


def test_a_token_that_the_class_adds_of_itself_needs_no_row(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    config = {"num_hidden_layers": 1, "vocab_size": 384, "hidden_size": 32, "num_attention_heads": 4}
    config["num_key_value_heads"] = 4
    AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen2", **config)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = load.load_tokenizer(tmp_path, load.skeleton(tmp_path))
    assert max(loaded.get_vocab().values()) == 384
    config_file = tmp_path / "tokenizer_config.json"
    content = json.loads(config_file.read_text())
    config_file.write_text(json.dumps({key: value for key, value in content.items() if key != "eos_token"}))
    with pytest.raises(RequestError, match="endoftext"):  # now texts end with it
        load.load_tokenizer(tmp_path, load.skeleton(tmp_path))
    loaded.save_pretrained(tmp_path)  # now it is the directory's
    with pytest.raises(RequestError, match="endoftext"):
        load.load_tokenizer(tmp_path, load.skeleton(tmp_path))


def test_it_is_found_before_any_work(
    make_model: Callable[..., Path], tmp_path: Path, write_config: Callable[..., Path], lors: Callable[..., Any]
) -> None:
    path = make_model(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(path)
    targets = {"train__input": str(path), "train__target_modules": ["*"]}
    config = write_config(model=str(path), eval__models=["dense"], **targets)
    for command in ("prune", "train", "eval"):
        assert "'<new>' with the number 384" in lors(command, config, status=2).stderr


@pytest.mark.parametrize(
    ("changes", "got", "remedy"),
    [
        ({"hidden_act": None}, "'hidden_act' expected str", "correct config.json"),
        ({"num_attention_heads": 0}, "modulo by zero", "correct config.json"),
        ({"pad_token_id": 5000}, "Padding_idx must be within", "correct config.json"),
        ({"dtype": "bf16"}, "'bf16', a dtype that PyTorch does not have", "set it to one of these"),
        ({"model_type": "t5"}, "T5Config, which AutoModelForCausalLM does not load", "docs/architectures.md"),
    ],
)
def test_a_value_in_the_config_that_does_not_fit(
    make_model: Callable[..., Path], tmp_path: Path, changes: dict[str, Any], got: str, remedy: str
) -> None:
    config = make_model(tmp_path) / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))
    with pytest.raises(RequestError) as caught:
        load.skeleton(tmp_path)
    (problem,) = caught.value.problems
    assert problem.file == str(config)
    assert got in problem.got
    assert remedy in problem.remedy


def test_what_a_class_keeps_in_float32_is_written_so(
    dense: Path,
    tmp_path: Path,
    write_config: Callable[..., Path],
    lors: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Pruning nothing leaves the logits of a 16-bit model with such tensors as they are."""
    monkeypatch.setattr(OPTPreTrainedModel, "_keep_in_fp32_modules_strict", ["layer_norm"])
    sizes = {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 64, "num_hidden_layers": 2}
    config = OPTConfig(vocab_size=384, num_attention_heads=4, max_position_embeddings=256, **sizes)
    model = OPTForCausalLM(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(tmp_path / "wide")
    AutoModelForCausalLM.from_pretrained(tmp_path / "wide", dtype=torch.bfloat16).save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(dense).save_pretrained(tmp_path / "model")
    lors("prune", write_config(model=str(tmp_path / "model"), dtype="auto", prune__sparsity=1e-6))
    source = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    pruned = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "pruned")
    assert pruned.model.decoder.final_layer_norm.weight.dtype == torch.float32
    assert pruned.model.decoder.layers[0].fc1.weight.dtype == torch.bfloat16
    ids = torch.arange(16)[None]
    assert torch.equal(pruned(ids).logits, source(ids).logits)
