"""Frozen weights in NF4, against the code book of QLoRA's appendix E and a slow quantisation."""

import pytest
import torch
from torch import Tensor, nn

from lors_cli.adapters import METHODS
from lors_cli.adapters.nf4_linear import BYTES_PER_WEIGHT, is_installed, nf4_linear
from lors_cli.adapters.replace import replace_linears
from tests.adapters.common import saved_for_backward

pytestmark = pytest.mark.skipif(not is_installed(), reason="needs bitsandbytes")

CODES = torch.tensor(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
        *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
        *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ]
)


def rounded(weight: Tensor) -> Tensor:
    """Each group of 64 to the nearest codes times its largest magnitude."""
    groups = weight.reshape(-1, 64)
    scales = groups.abs().amax(1, keepdim=True)
    nearest = (groups / scales).unsqueeze(2).sub(CODES).abs().argmin(2)
    return (CODES[nearest] * scales).reshape(weight.shape)


def dense_of(linear: nn.Linear) -> Tensor:
    """What it multiplies with."""
    product: Tensor = linear(torch.eye(linear.in_features)).T
    return product if linear.bias is None else product - linear.bias[:, None]


def test_the_weight_is_rounded_to_the_codes_of_its_group() -> None:
    linear = nn.Linear(128, 96, bias=True)
    nn.init.constant_(linear.bias, 0.5)  # exact in what is subtracted again
    with torch.no_grad():
        linear.weight[:, ::2] = 0
        quantised = nf4_linear(linear)
        multiplied, wanted = dense_of(quantised), rounded(linear.weight)
    assert quantised.bias is linear.bias
    assert not multiplied[:, ::2].any()  # NF4 has an exact zero
    # the scales are kept in 8 bits: within a few per cent, and that of a group is common to it
    assert (multiplied - wanted).abs().max() < 0.05 * linear.weight.abs().max()
    assert ((multiplied == 0) == (wanted == 0)).float().mean() > 0.999
    assert quantised.weight.nbytes == linear.weight.numel() // 2
    state = quantised.weight.quant_state  # type: ignore[attr-defined]
    scales = state.absmax.nbytes + state.state2.absmax.nbytes
    assert (quantised.weight.nbytes + scales) / linear.weight.numel() == pytest.approx(BYTES_PER_WEIGHT, rel=0.01)


def test_a_pass_without_gradients_leaves_the_next_ones_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    # on such CPUs the library repacks weights for inference, whose product has no gradient
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    quantised = nf4_linear(nn.Linear(64, 48))
    x = torch.randn(5, 64)
    with torch.no_grad():
        before = quantised.eval()(x)
    leaf = x.clone().requires_grad_()
    after = quantised.train()(leaf)
    assert torch.equal(before, after)
    after.sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.norm() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lora_on_it_has_the_gradients_of_lora_on_what_it_rounds_to(dtype: torch.dtype) -> None:
    weight = torch.randn(96, 128) * 0.02
    results = []
    with torch.no_grad():
        holder = nn.Linear(128, 96, bias=False)
        holder.weight.copy_(weight)
        as_rounded = dense_of(nf4_linear(holder))
    for base in ("nf4", "dense"):
        model = nn.ModuleDict({"one": nn.Linear(128, 96, bias=False)})
        model["one"].weight.data = (weight if base == "nf4" else as_rounded).to(dtype)
        torch.manual_seed(1)
        adapter = replace_linears(model, ["one"], METHODS["lora"].adapter, base=base, rank=4, alpha=8)["one"]
        adapter.tensors()["lora_B"].data.normal_(std=0.1)
        x = torch.randn(10, 128, dtype=dtype, requires_grad=True)
        y, saved = saved_for_backward(lambda adapter=adapter, x=x: adapter(x))  # type: ignore[misc]
        if base == "nf4":  # the dense weight is not kept for backward
            assert not any(tensor.shape in (weight.shape, weight.T.shape) for tensor in saved)
        y.backward(torch.ones_like(y))
        results.append([y, x.grad, *(tensor.grad for tensor in adapter.tensors().values())])
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for one, other in zip(*results, strict=True):
        assert (one - other).norm() < tolerance * other.norm()


def test_other_methods_refuse_it() -> None:
    model = nn.ModuleDict({"one": nn.Linear(64, 64)})
    with pytest.raises(ValueError, match="an adapter that multiplies with nf4 weights, got LoRS"):
        replace_linears(model, ["one"], METHODS["lors"].adapter, base="nf4", rank=4, alpha=8)
