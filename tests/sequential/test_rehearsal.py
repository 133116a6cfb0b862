"""What pruning relies on is tried out before it begins: each way in which a model breaks it is refused by name."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from lors_cli.errors import RequestError
from lors_cli.models import linears
from lors_cli.sequential import rehearsal
from tests.models.test_tiny import skeleton
from tests.sequential.test_replay import COMMON


def check(model: Any, **options: Any) -> None:
    rehearsal.check(model, "model", ranked=linears.all_linears(model), **options)


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "falcon", "opt", "bamba", "modernbert-decoder", "cohere2"])
def test_a_model_that_fits_passes(name: str, caplog: pytest.LogCaptureFixture) -> None:
    check(skeleton(name))
    assert not [record for record in caplog.records if record.name.startswith("lors_cli")]  # it was tried


def test_states_of_another_shape_are_refused() -> None:
    with pytest.raises(RequestError, match=r"Gemma3n.*: the states that enter model\.layers\.0 are of shape \(4, 1"):
        check(skeleton("gemma3n_text"))


def test_a_model_that_writes_into_its_weights_is_refused() -> None:
    with pytest.raises(
        RequestError, match=r"RwkvForCausalLM, which writes into rwkv\.blocks\.0\.attention\.output\.weight"
    ):
        check(skeleton("rwkv"))


def test_a_weight_that_is_used_without_a_call_is_refused_with_a_remedy() -> None:
    """The state-space layer multiplies with the weight itself, so no hook and no adapter sees it."""
    mamba = skeleton("falcon_mamba")
    with pytest.raises(RequestError, match=r"does not call mixer\.dt_proj") as caught:
        check(mamba)
    assert "{match: mixer.dt_proj, skip: true}" in caught.value.problems[0].remedy
    rehearsal.check(mamba, "model", ranked=[n for n in linears.all_linears(mamba) if not n.endswith("mixer.dt_proj")])


class Odd(LlamaForCausalLM):
    """A Llama whose second block is replaced by one that breaks a rule."""

    block: type[nn.Module]

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.model.layers[1] = self.block()


def odd(block: type[nn.Module]) -> Any:
    return type("OddForCausalLM", (Odd,), {"block": block})(LlamaConfig(**COMMON))


class Good(nn.Module):
    attention_type = "full_attention"

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(32, 32)

    def forward(self, states: Tensor, **kwargs: Any) -> Any:
        return states + self.up(states)


class Remembers(Good):
    """Its output depends on how often it was run."""

    calls = 0

    def forward(self, states: Tensor, **kwargs: Any) -> Any:
        self.calls += 1
        return states + self.calls * self.up(states)


class Changes(Good):
    """What it is called with is another thing afterwards."""

    def forward(self, states: Tensor, **kwargs: Any) -> Any:
        kwargs["position_embeddings"][0].add_(1)
        return states + self.up(states)


class InPlace(Good):
    """Writes into the states that it gets and into the linear's output, which is fine."""

    def forward(self, states: Tensor, **kwargs: Any) -> Any:
        y = self.up(states)
        states += y
        y += 1
        return states.add_(y), None


class Calls(Good):
    def forward(self, states: Tensor, **kwargs: Any) -> Any:
        return self.up(self.up(states))


class Shares(Good):
    """Calls its linears with one tensor for some texts only."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Linear(32, 32)
        self.turn = 0

    def forward(self, states: Tensor, **kwargs: Any) -> Any:
        self.turn += 1
        other = states if self.turn % 2 else states * 1
        return self.up(states) + self.down(other)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (Remembers, r"layers\.1 gives other states"),
        (Changes, "changes what it is called with"),
        (Shares, "in some windows only"),
    ],
)
def test_a_block_that_breaks_a_rule_is_named(block: type[nn.Module], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        check(odd(block))


@pytest.mark.parametrize("block", [Good, InPlace, Calls])
def test_a_block_that_keeps_the_rules_passes(block: type[nn.Module]) -> None:
    check(odd(block))


def test_a_linear_that_is_called_twice_is_refused_for_linear_by_linear() -> None:
    with pytest.raises(RequestError, match=r"prune\.sequential") as caught:
        check(odd(Calls), linear_by_linear=True)
    assert "model.layers.1.up" in str(caught.value)
    check(odd(Good), linear_by_linear=True)


def test_a_model_that_cannot_be_tried_is_not_refused(caplog: pytest.LogCaptureFixture) -> None:
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**COMMON))
    model.config.hidden_act = "unheard of"
    check(model)
    assert "cannot be tried out" in caplog.text


class Frozen(Good):
    """It computes without gradients."""

    @torch.no_grad()
    def forward(self, states: Tensor, **kwargs: Any) -> Any:
        return super().forward(states)


def test_a_block_without_gradients_is_refused_for_tuning_alone() -> None:
    check(odd(Good), tuned=True)
    check(odd(Frozen))
    with pytest.raises(
        RequestError, match=r"model\.layers\.1: RuntimeError: element 0 of tensors does not require grad"
    ) as caught:
        check(odd(Frozen), tuned=True)
    assert (caught.value.problems[0].key, caught.value.problems[0].remedy) == (
        "prune.tune_blocks",
        "leave tune_blocks out",
    )


@pytest.mark.parametrize("name", ["gemma3_text", "falcon", "opt", "bamba", "modernbert-decoder", "cohere2"])
def test_blocks_of_known_models_have_gradients(name: str) -> None:
    check(skeleton(name), tuned=True)
