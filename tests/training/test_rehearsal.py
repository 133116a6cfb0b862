"""Adapters are tried out before a training: what would break in the first backward is said at once."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP

from lors_cli.config.methods import complete
from lors_cli.config.train import Train
from lors_cli.errors import RequestError
from lors_cli.models import linears
from lors_cli.training import rehearsal
from tests.models.test_tiny import skeleton
from tests.sequential.test_replay import COMMON


def section(method: str = "lors") -> Train:
    return complete(Train).model_validate(
        {"method": method, "dataset": "python-topics", **({} if method == "full" else {"rank": 4})}
    )


@pytest.mark.parametrize("method", ["lors", "spp", "sqft", "lora", "full"])
@pytest.mark.parametrize("name", ["falcon", "llama", "opt"])
def test_models_that_write_into_outputs_can_be_trained(name: str, method: str) -> None:
    model = skeleton(name)
    rehearsal.check(model, section(method), list(linears.all_linears(model)))


def test_a_weight_that_is_used_without_a_call_is_refused() -> None:
    mamba = skeleton("mamba")
    names = list(linears.all_linears(mamba))
    with pytest.raises(RequestError, match=r"with an adapter on .*mixer\.dt_proj \(AttributeError") as caught:
        rehearsal.check(mamba, section(), names)
    assert caught.value.problems[0].key == "train.target_modules"
    named = re.search(r"target_modules: \[(.*)\]", caught.value.problems[0].remedy)
    assert named is not None
    rehearsal.check(mamba, section(), linears.select(names, named[1].split(", "), "train.target_modules"))


def test_a_model_that_writes_into_its_weights_is_refused() -> None:
    rwkv = skeleton("rwkv")
    with pytest.raises(RequestError, match=r"RwkvForCausalLM, which writes into"):
        rehearsal.check(rwkv, section(), list(linears.all_linears(rwkv)))


def test_training_mode_is_what_is_tried() -> None:
    """In eval mode this model calls the linear, in training a kernel reads its weight."""
    bamba = skeleton("bamba")
    names = list(linears.all_linears(bamba))
    with pytest.raises(RequestError, match=r"mamba\.out_proj"):
        rehearsal.check(bamba, section(), names)
    rehearsal.check(bamba, section(), [name for name in names if "mamba.out_proj" not in name])


def test_a_linear_that_is_not_called_is_refused() -> None:
    bart = skeleton("bart")
    with pytest.raises(RequestError, match=r"encoder_attn\.k_proj \(it does not call"):
        rehearsal.check(bart, section(), list(linears.all_linears(bart)))


def test_a_norm_that_is_not_used_is_refused() -> None:
    bart = skeleton("bart")
    names = [name for name in linears.all_linears(bart) if "encoder_attn" not in name]
    rehearsal.check(bart, section(), names)
    with pytest.raises(RequestError, match=r"encoder_attn_layer_norm\.weight, which it does not use") as caught:
        rehearsal.check(bart, section().model_copy(update={"also": ["norms"]}), names)
    assert caught.value.problems[0].key == "train.also"
    rehearsal.check(bart, section().model_copy(update={"also": ["biases"]}), names)


class Spoilt(LlamaMLP):
    """Writes into the tensor that its linears were called with, which no adapter allows: backward needs it."""

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1
        gate = self.gate_proj(x)
        x.mul_(2)
        return self.down_proj(gate * self.up_proj(x))  # type: ignore[no-any-return]


class SpoiltForCausalLM(LlamaForCausalLM):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.model.layers[0].mlp = Spoilt(config)


def test_an_input_that_is_written_into_is_refused() -> None:
    model: Any = SpoiltForCausalLM(LlamaConfig(**COMMON))
    with pytest.raises(RequestError, match="modified by an inplace operation"):
        rehearsal.check(model, section(), list(linears.all_linears(model)))
    rehearsal.check(model, section(), [name for name in linears.all_linears(model) if "attn" in name])
    assert torch.is_grad_enabled()
