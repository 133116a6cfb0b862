"""Whatever order the inputs get, the block computes what it did before: with exact norms, to float64 rounding."""

from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from lors_cli.models import linears
from lors_cli.sequential import fold, replay
from tests.sequential.test_replay import ARCHITECTURES, COMMON

WIDTH = 8  # of a head
BIASED = {"model_type": "llama", "attention_bias": True, "mlp_bias": True}
FOLDED = {
    "llama": ("self_attn.o_proj", "mlp.down_proj"),
    "llama-biased": ("self_attn.o_proj", "mlp.down_proj"),
    "llama-without-groups": ("self_attn.o_proj", "mlp.down_proj"),
    "llama-one-key-value-head": ("self_attn.o_proj", "mlp.down_proj"),
    "mistral": ("self_attn.o_proj", "mlp.down_proj"),
    "qwen2": ("self_attn.o_proj", "mlp.down_proj"),
    "qwen3": ("self_attn.o_proj", "mlp.down_proj"),
    "gemma2": ("self_attn.o_proj", "mlp.down_proj"),
    "phi3": (),
    "opt": ("self_attn.out_proj", "fc2"),
}
MORE: dict[str, dict[str, Any]] = {
    "llama-biased": BIASED,
    "llama-without-groups": {"model_type": "llama", "num_key_value_heads": 4},
    "llama-one-key-value-head": {"model_type": "llama", "num_key_value_heads": 1},
}


def build(name: str) -> nn.Module:
    """A model in float64 with everything random, biases and norms too."""
    torch.manual_seed(0)
    settings = {"model_type": name, **COMMON, **{**ARCHITECTURES, **MORE}[name]}
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    model: nn.Module = AutoModelForCausalLM.from_config(config, attn_implementation="eager").double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):  # they compute in float32
            module.forward = MethodType(exact_norm, module)
    return model


def exact_norm(norm: Any, x: Tensor) -> Tensor:
    weight: Tensor = norm.weight
    return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * weight


@pytest.mark.parametrize("name", list(FOLDED))
@torch.no_grad()
def test_the_function_of_the_block_does_not_change(name: str) -> None:
    model = build(name)
    block = linears.find_blocks(model)[1][1]
    by_name = linears.block_linears(block)
    states: dict[int, Tensor] = {}
    calls = replay.capture(model, {0: torch.randint(1, 64, (1, 16))}, states.__setitem__)
    before = calls.run(block, 1, 0, states[0])
    weights = {key: linear.weight.clone() for key, linear in by_name.items()}
    folded = []
    for key in by_name:
        score = torch.rand_like(by_name[key].weight)
        index = fold.permuted(by_name, key, score, WIDTH, 4, lambda each: torch.randperm(each.shape[1]))
        if index is None:
            assert all(torch.equal(linear.weight, weights[other]) for other, linear in by_name.items())
            continue
        folded.append(key)
        assert torch.equal(index.sort().values, torch.arange(by_name[key].in_features))
        assert torch.equal(by_name[key].weight, weights[key][:, index])
        after = calls.run(block, 1, 0, states[0])
        torch.testing.assert_close(after, before, rtol=1e-12, atol=1e-12)
        changed = {other for other, linear in by_name.items() if not torch.equal(linear.weight, weights[other])}
        assert len(changed) == (3 if key == "mlp.down_proj" else 2)
        weights = {other: linear.weight.clone() for other, linear in by_name.items()}
    assert sorted(folded) == sorted(FOLDED[name])


@torch.no_grad()
def test_the_test_above_would_see_a_wrong_fold() -> None:
    """Permuting across heads, or a linear without its neighbours, is far above rounding."""
    model = build("qwen2")
    block = linears.find_blocks(model)[1][1]
    by_name = linears.block_linears(block)
    states: dict[int, Tensor] = {}
    calls = replay.capture(model, {0: torch.randint(1, 64, (1, 16))}, states.__setitem__)
    before = calls.run(block, 1, 0, states[0])
    bias = by_name["self_attn.v_proj"].bias.data
    fold.permuted(by_name, "self_attn.o_proj", torch.rand(32, 32), WIDTH, 4, lambda each: torch.arange(WIDTH).flip(0))
    by_name["self_attn.v_proj"].bias.data = bias
    assert float((calls.run(block, 1, 0, states[0]) - before).abs().max()) > 1e-3


def attention(heads: int, groups: int, width: int, rows: int = 6) -> dict[str, nn.Linear]:
    return {
        "self_attn.v_proj": nn.Linear(5, groups * width),
        "self_attn.o_proj": nn.Linear(heads * width, rows),
    }


def test_query_heads_of_a_key_value_head_get_one_order_from_all_their_scores() -> None:
    block = attention(heads=6, groups=2, width=4)
    seen: list[Tensor] = []
    score = torch.arange(6 * 24.0).view(6, 24)

    def order(each: Tensor) -> Tensor:
        seen.append(each)
        return torch.tensor([[2, 0, 3, 1], [1, 3, 0, 2]])[len(seen) - 1]

    index = fold.permuted(block, "self_attn.o_proj", score, 4, 4, order)
    assert index is not None
    assert index.view(6, 4).tolist() == [
        [place + 4 * head for place in ([2, 0, 3, 1], [1, 3, 0, 2])[head // 3]] for head in range(6)
    ]
    for group in range(2):
        rows = {tuple(row.tolist()) for row in seen[group]}
        assert rows == {
            tuple(score[r, 4 * h : 4 * h + 4].tolist()) for r in range(6) for h in range(3 * group, 3 * group + 3)
        }


def test_the_order_of_channels_is_from_the_whole_score() -> None:
    block = {"mlp.gate_proj": nn.Linear(5, 8), "mlp.up_proj": nn.Linear(5, 8), "mlp.down_proj": nn.Linear(8, 5)}
    score = torch.rand(5, 8)
    seen: list[Tensor] = []

    def order(each: Tensor) -> Tensor:
        seen.append(each)
        return torch.arange(8)

    fold.permuted(block, "mlp.down_proj", score, 3, 4, order)
    assert len(seen) == 1
    assert torch.equal(seen[0], score)


@pytest.mark.parametrize(
    ("block", "name", "width", "m"),
    [
        (attention(4, 2, 6), "self_attn.o_proj", 6, 4),  # a head of 6 has no whole groups of 4
        (attention(4, 2, 8), "self_attn.o_proj", 8, 16),
        (attention(4, 2, 8), "self_attn.o_proj", 12, 4),  # what says so is not the width of a head
        (attention(4, 2, 8), "self_attn.v_proj", 8, 4),
        ({"self_attn.o_proj": nn.Linear(32, 6)}, "self_attn.o_proj", 8, 4),  # its values come from elsewhere
        ({"mlp.up_proj": nn.Linear(5, 8), "mlp.down_proj": nn.Linear(8, 5)}, "mlp.down_proj", 8, 4),
        ({"fc2": nn.Linear(8, 5)}, "fc2", 8, 4),
    ],
)
def test_what_does_not_fold_is_left_alone(block: dict[str, nn.Linear], name: str, width: int, m: int) -> None:
    before = {key: linear.weight.clone() for key, linear in block.items()}

    def order(_: Tensor) -> Tensor:
        raise AssertionError("nothing to order")

    assert fold.permuted(block, name, torch.rand(block[name].weight.shape), width, m, order) is None
    assert all(torch.equal(linear.weight, before[key]) for key, linear in block.items())


def test_a_width_that_m_does_not_divide_matters_to_heads_only() -> None:
    block = {"fc1": nn.Linear(5, 8), "fc2": nn.Linear(8, 5)}
    index = fold.permuted(block, "fc2", torch.rand(5, 8), 6, 4, lambda each: torch.arange(8).flip(0))
    assert index is not None
