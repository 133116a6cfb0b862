"""What is counted of one variant, and the subject that it is counted on."""

import time
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import sdpa_backward_flop_count, sdpa_flop_count
from transformers import AutoConfig

from lors_cli.benchmark import clock, measure
from lors_cli.benchmark.roofline import Setting
from lors_cli.benchmark.subject import Subject, build, inputs_for, names, read_shape
from lors_cli.benchmark.variants import VARIANTS
from lors_cli.sparsity import mask
from lors_cli.sparsity.pattern import Pattern

CPU, HALF = torch.device("cpu"), Pattern.parse("2:4")
H, W, R, N = 32, 64, 8, 24  # hidden and intermediate size of the pico model, rank and tokens of a measurement


@pytest.fixture
def pico(dense: Path) -> str:
    return str(dense)


@pytest.mark.parametrize("name", VARIANTS)
def test_counts_of_a_linear_are_those_of_the_formulas(pico: str, name: str) -> None:
    config, setting = read_shape(pico), Setting("linear", N, 1, R, 4)
    base = build(config, "linear", torch.float32, CPU, HALF)
    inputs, target = inputs_for(base, setting, torch.float32, CPU)
    subject = Subject(base, VARIANTS[name], setting)
    counted = measure.counts(subject, inputs, target)
    gemm, merge, factors = H * W * N, R * H * W, R * N * (H + W)
    wanted = {
        "frozen": (gemm, gemm, 0),
        "lora": (gemm + factors, gemm + 2 * factors, 4 * R * N),
        "lors": (gemm + merge, gemm + merge + 2 * factors, 0),
        "lors-cached": (gemm + merge / 8, gemm + 2 * factors, 0),
        "sqft": (gemm + merge, 2 * (gemm + merge), 5 * H * W),
        "sqft-gc": (gemm + merge, 2 * gemm + 3 * merge, 0),
        "sqft-gc-reentrant": (gemm + merge, 3 * (gemm + merge), 0),
        "spp": (2 * gemm, 3 * gemm, 12 * H * W),
        "spp-gc": (2 * gemm, 3 * gemm, 0),
        "spp-gc-reentrant": (2 * gemm, 4 * gemm, 0),
        "spp-columns": (2 * gemm, 2 * gemm, 4 * W * N),
        "spp-merged": (gemm, 2 * gemm, 0),
    }
    wanted["lors-packed"] = wanted["lors-listing"] = wanted["lors-int4"] = wanted["lors"]
    wanted |= {"lora-int4": wanted["lora"], "sqft-int4": wanted["sqft-gc"]}
    forward, backward, saved = wanted[name]
    assert counted == {"forward_flops": 2 * forward, "backward_flops": 2 * backward, "saved_bytes": saved}
    # the roofline's products are the ones counted
    variant = VARIANTS[name]
    assert 2 * variant.forward.gemms * gemm <= counted["forward_flops"] < 2 * (variant.forward.gemms + 1) * gemm
    assert measure.peak_bytes(subject, inputs, target) > 0
    assert measure.seconds(subject, inputs, target) > 0


@pytest.mark.parametrize("scope", ["block", "model"])
def test_weights_are_shared_sparse_and_untouched(pico: str, scope: str) -> None:
    base = build(read_shape(pico), scope, torch.float32, CPU, HALF)
    linears = names(base, scope)
    assert len(linears) == (7 if scope == "block" else 14)
    weights = {name: base.get_parameter(f"{name}.weight") for name in linears}
    assert all(mask.detect(weight) == "2:4" for weight in weights.values())
    assert not any(mask.negative_zeros(weight) for weight in weights.values())
    before = {name: weight.clone() for name, weight in base.named_parameters()}
    setting = Setting(scope, N, 2, R, 4, checkpointing=True)
    inputs, target = inputs_for(base, setting, torch.float32, CPU)
    outputs = []
    for name in ("lors", "lors-cached", "lors-packed", "lora", "lors-int4", "lora-int4", "sqft-int4"):
        subject = Subject(base, VARIANTS[name], setting)
        outputs.append(subject.forward(inputs, target))
        subject.run(inputs, target)
        if VARIANTS[name].base == "dense":
            own = subject.model.get_submodule(linears[0]).linear.weight
            assert own.data_ptr() == weights[linears[0]].data_ptr()
        assert all(t.grad is None for a in subject.adapters.values() for t in a.tensors().values())
    assert all(torch.equal(weight, before[name]) for name, weight in base.named_parameters())
    assert all(output.isfinite().all() for output in outputs)


def test_on_codes_a_block_holds_less_than_a_quarter_of_bfloat16_and_saves_what_it_saves_otherwise() -> None:
    config = AutoConfig.for_model(
        "llama", hidden_size=2048, intermediate_size=2048, num_attention_heads=32, num_key_value_heads=4
    )
    setting = Setting("block", 2, 1, 2, 2)
    base = build(config, "block", torch.bfloat16, CPU, HALF)
    weights = sum(base.get_parameter(f"{name}.weight").numel() for name in names(base, "block"))
    inputs, target = inputs_for(base, setting, torch.bfloat16, CPU)
    resident, saved = {}, {}
    for name in ("lors", "lors-int4"):
        subject = Subject(base, VARIANTS[name], setting)
        resident[name] = sum(p.nbytes for one in subject.adapters.values() for p in one.linear.parameters())
        saved[name] = measure.counts(subject, inputs, target)["saved_bytes"]
    assert resident["lors"] == 2 * weights
    # two codes of every four weights, a bit for each place, and a scale for each group
    assert resident["lors-int4"] == weights // 4 + weights // 8 + 2 * weights // 128
    assert resident["lors-int4"] / resident["lors"] == 0.1953125 <= 0.22
    assert saved["lors-int4"] == saved["lors"]


def test_the_lower_bound_has_a_backward_in_a_model_too(pico: str) -> None:
    config = read_shape(pico)
    config.pad_token_id = 300
    base = build(config, "model", torch.float32, CPU, HALF)
    setting = Setting("model", N, 1, R, 4)
    inputs, target = inputs_for(base, setting, torch.float32, CPU)
    counted = measure.counts(Subject(base, VARIANTS["frozen"], setting), inputs, target)
    assert counted["backward_flops"] == pytest.approx(
        counted["forward_flops"], rel=0.3
    )  # attention has two more products
    tied = base.get_output_embeddings().weight  # type: ignore[operator]
    assert tied is base.get_input_embeddings().weight  # type: ignore[operator]


def test_warming_up_does_not_count() -> None:
    calls: list[str] = []

    def way(name: str, slow: int) -> None:
        calls.append(name)
        time.sleep(0.05 if len(calls) <= slow else 0)

    taken = clock.medians({"a": lambda: way("a", 4), "b": lambda: way("b", 4)}, CPU, rounds=3, warm_up=2)
    assert calls == ["a", "b"] * 5  # in turns
    assert max(taken.values()) < 0.05
    assert min(clock.medians({"a": lambda: time.sleep(0.01)}, CPU, rounds=2, warm_up=0).values()) >= 0.01


def test_attention_counts_as_torch_does_with_the_heads_of_keys_repeated() -> None:
    query, key, repeated = (2, 8, 16, 32), (2, 2, 24, 32), (2, 8, 24, 32)
    aten = torch.ops.aten
    forward = measure.ATTENTION[aten._scaled_dot_product_flash_attention]
    backward = measure.ATTENTION[aten._scaled_dot_product_flash_attention_backward]
    assert len(measure.ATTENTION) == 6
    assert forward(query, key, key) == sdpa_flop_count(query, repeated, repeated)
    assert backward(query, query, key, key) == sdpa_backward_flop_count(query, query, repeated, repeated)
