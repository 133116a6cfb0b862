"""Which list of modules the decoder blocks are, and what of a model's blocks cannot be pruned."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from lors_cli.errors import RequestError
from lors_cli.models import linears, tiny
from tests.sequential.test_replay import COMMON

VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
    "num_hidden_layers": COMMON["num_hidden_layers"],
}


def skeleton(model_type: str, **settings: Any) -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings))


def found(model: nn.Module) -> tuple[str, str]:
    name, blocks = linears.find_blocks(model)
    return name, type(blocks[0]).__name__


@pytest.mark.parametrize("depth", [2, 3])
def test_the_text_model_is_found_beside_a_vision_tower_as_deep(depth: int) -> None:
    settings: dict[str, Any] = {"text_config": COMMON, "vision_config": {**VISION, "num_hidden_layers": depth}}
    gemma = skeleton("gemma3", **settings, mm_tokens_per_image=4)
    assert found(gemma) == ("model.language_model.layers", "Gemma3DecoderLayer")
    assert len(linears.find_blocks(gemma)[1]) == 3
    assert linears.decoder(gemma) is gemma.model.language_model


def test_a_decoder_that_holds_the_vision_tower_itself() -> None:
    """Here transformers' own get_decoder gives both lists, and only a text tells them apart."""
    git = skeleton("git", **COMMON, vision_config=VISION)
    assert found(git) == ("git.encoder.layer", "GitLayer")
    assert linears.decoder(git) is git.git


def test_a_tiny_model_is_run_for_the_first_search_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    git, made, small = skeleton("git", **COMMON, vision_config=VISION), list[Any](), tiny.tiny

    def counted(model: PreTrainedModel) -> PreTrainedModel | None:
        made.append(model)
        return small(model)

    monkeypatch.setattr(tiny, "tiny", counted)
    first = linears.find_blocks(git)
    assert linears.find_blocks(git) == first
    assert linears.decoder(git) is linears.decoder(git)
    assert made == [git]


def test_an_encoders_depth_does_not_matter() -> None:
    """Of these configs num_hidden_layers is the encoder's."""
    bart = skeleton("bart", d_model=32, encoder_layers=5, decoder_layers=2, decoder_ffn_dim=48, vocab_size=64)
    assert found(bart) == ("model.decoder.layers", "BartDecoderLayer")
    assert len(linears.find_blocks(bart)[1]) == 2


def test_a_decoder_that_get_decoder_takes_for_the_head() -> None:
    model = skeleton("modernbert-decoder", **COMMON)
    assert isinstance(model.get_decoder(), nn.Linear)
    assert linears.decoder(model) is model.model


class Twice(LlamaForCausalLM):
    """Two lists of blocks, through both of which a text goes."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.model.more = nn.ModuleList(nn.Sequential(nn.Linear(32, 32)) for _ in range(3))
        self.used = True

    def forward(self, input_ids: Tensor, **kwargs: Any) -> CausalLMOutput:  # type: ignore[override]
        states = self.model(input_ids=input_ids, use_cache=False).last_hidden_state
        for block in self.model.more if self.used else []:
            states = block(states)
        return CausalLMOutput(logits=self.lm_head(states))


class Once(Twice):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.used = False


def test_two_lists_are_refused_where_a_text_goes_through_both() -> None:
    with pytest.raises(RequestError, match=r"several|model\.layers, model\.more") as caught:
        linears.find_blocks(Twice(LlamaConfig(**COMMON)))
    assert caught.value.exit_status == 2
    assert linears.find_blocks(Once(LlamaConfig(**COMMON)))[0] == "model.layers"


def test_blocks_that_a_text_goes_through_several_times_are_refused() -> None:
    with pytest.raises(RequestError, match="goes through once"):
        linears.find_blocks(skeleton("hrm_text", **COMMON))


@pytest.mark.parametrize("name", ["gpt2", "openai-gpt"])
def test_weights_that_are_not_in_linears_are_named(name: str) -> None:
    with pytest.raises(RequestError, match="keep their weights in Conv1D"):
        linears.all_linears(skeleton(name, n_embd=32, n_layer=2, n_head=4, vocab_size=64))


def test_convolutions_are_not_experts() -> None:
    model = skeleton("lfm2", **COMMON, layer_types=["conv", "full_attention", "conv"])
    assert any(parameter.dim() == 3 for parameter in model.parameters())
    linears.check_prunable(model, "model")


def test_blocks_that_share_weights_are_refused() -> None:
    model: PreTrainedModel = LlamaForCausalLM(LlamaConfig(**COMMON))
    linears.check_prunable(model, "model")
    model.model.layers[2].mlp.up_proj = model.model.layers[0].mlp.up_proj
    with pytest.raises(RequestError, match=r"share mlp\.up_proj\.weight"):
        linears.check_prunable(model, "model")


class Rounded(nn.Linear):
    """Multiplies with something else than its weight."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.sign(), self.bias)


class Named(nn.Linear):
    """A linear under another name."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T + (0 if self.bias is None else self.bias)


@pytest.mark.parametrize("bias", [True, False])
def test_a_class_of_linears_is_judged_by_what_it_computes(bias: bool) -> None:
    model = LlamaForCausalLM(LlamaConfig(**COMMON))
    model.model.layers[1].mlp.up_proj = Named(32, 48, bias=bias)
    linears.check_forward(model, "model")
    model.model.layers[1].mlp.up_proj = Rounded(32, 48, bias=bias)
    with pytest.raises(RequestError, match=r"mlp\.up_proj is a Rounded"):
        linears.check_forward(model, "model")
