"""Packed documents see each other in some models: found by trying, refused before any work, and the remedy works."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from typer.testing import Result

from lors_cli.errors import RequestError
from lors_cli.training import documents
from tests.models.test_tiny import skeleton
from tests.sequential.test_replay import COMMON


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3_text", "mistral", "phi3", "gpt_neox", "cohere2", "codegen"])
def test_models_that_go_by_positions_are_exact(name: str) -> None:
    assert documents.check(skeleton(name), "train")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_both_attentions_are_exact(attention: str) -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **COMMON), attn_implementation=attention)
    assert documents.leak(model) is None


@pytest.mark.parametrize("name", ["opt", "bloom", "mpt", "mamba2", "bert"])
def test_models_that_do_not_are_refused(name: str) -> None:
    with pytest.raises(RequestError, match="moves the logits of the next by") as caught:
        documents.check(skeleton(name), "train")
    assert caught.value.problems[0].key == "train.packing"
    assert caught.value.problems[0].remedy == "set train.packing: false"


class Shifted(LlamaForCausalLM):
    """Documents do not see each other, but each starts where the one before it ended."""

    def forward(self, input_ids: Tensor, position_ids: Tensor | None = None, **kwargs: Any) -> Any:
        if position_ids is not None:
            starts = (position_ids == 0).cumsum(1)
            position_ids = position_ids + starts * position_ids.clamp(max=1)  # gaps, in later documents wider ones
        return super().forward(input_ids=input_ids, position_ids=position_ids, **kwargs)


class Deaf(LlamaForCausalLM):
    """Does not take positions."""

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> Any:  # type: ignore[override]
        return super().forward(input_ids=input_ids, use_cache=use_cache)


@pytest.mark.parametrize(("kind", "message"), [(Shifted, "differ"), (Deaf, "positions cannot be given")])
def test_other_ways_of_not_keeping_documents_apart(kind: type[LlamaForCausalLM], message: str) -> None:
    model = kind(LlamaConfig(**COMMON)).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=0.3)
    with pytest.raises(RequestError, match=message):
        documents.refuse_leaks(model, "train", "Model")
    assert model.training


def test_a_model_that_cannot_be_tried_says_so() -> None:
    model = skeleton("llama")
    model.config.hidden_act = "unheard of"
    assert not documents.check(model, "train")


def test_the_command_refuses_and_its_remedy_works(
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerFast,
    write_config: Callable[..., Path],
    lors: Callable[..., Result],
) -> None:
    """The check comes before a dry run, pruning or training: nothing is written."""
    source = tmp_path / "opt"
    settings = {**COMMON, "vocab_size": 384, "ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 128}
    AutoModelForCausalLM.from_config(AutoConfig.for_model("opt", **settings)).save_pretrained(source)
    tokenizer.save_pretrained(source)
    config = write_config(model=str(source), train__packing=True)
    for command in (["run"], ["run", "--dry-run"], ["prune"], ["train"]):
        if command == ["prune"]:
            lors(*command, config)  # so that train has its input
            continue
        output = lors(*command, config, status=2).output
        assert "train.packing" in output
        assert "OPTForCausalLM" in output
        assert not (tmp_path / "run" / "adapter").exists()
    lors("train", config, "train.packing=false")
    assert (tmp_path / "run" / "adapter" / "lors.json").is_file()
