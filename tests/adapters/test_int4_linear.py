"""Adapters on the codes of a quantised weight, against autograd of the plain formulas on what the codes stand for."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lors_cli.adapters import METHODS, lors
from lors_cli.adapters.base import Adapter
from lors_cli.adapters.int4_linear import Int4Linear
from lors_cli.adapters.lors import LoRS, Operands
from lors_cli.benchmark.measure import allocated_peak
from lors_cli.quantization.grid import Grid, codes_of, fit, values
from lors_cli.quantization.stored import Quantized
from tests.adapters.common import saved_for_backward

R, C, RANK, ALPHA = 20, 24, 4, 6.0
SCALE = ALPHA / RANK
PATTERNS = ["2:4", "half", "dense"]
METHODS_ON_CODES = ["lors", "sqft", "lora"]


def quantized(
    pattern: str = "half", *, bits: int = 4, symmetric: bool = False, scale: Any = torch.bfloat16
) -> Quantized:
    torch.manual_seed(1)
    weight = torch.randn(R, C) + 0.3
    if pattern == "2:4":
        weight.view(-1, 4)[:, [1, 2]] = 0
    if pattern == "half":
        weight[torch.rand(R, C) < 0.6] = 0
        weight[3] = 0
    grid = Grid(bits, 8, symmetric)
    scales = fit(weight, grid, scale)
    return Quantized(codes_of(weight, scales, grid), *scales, grid)


def adapter_on(weight: Quantized, method: str, dtype: torch.dtype = torch.float64, **options: Any) -> Adapter:
    linear: Any = Int4Linear(weight, nn.Parameter(torch.randn(R, dtype=dtype)), dtype)
    adapter = METHODS[method].adapter(linear, rank=RANK, alpha=ALPHA, **options)
    for parameter in adapter.tensors().values():
        parameter.data.normal_(std=0.3)
    return adapter


def plain(
    adapter: Adapter, weight: Quantized, x: Tensor, method: str, *, on_grid: bool = False
) -> tuple[Tensor, Tensor]:
    """The formula as it is written, by autograd, and W' of it."""
    a, b = adapter.tensors().values()
    dense = weight.weight(x.dtype)
    if method == "lora":
        return F.linear(x, dense, adapter.linear.bias) + SCALE * x @ a.T @ b.T, dense
    effective = dense + SCALE * (b @ a) * (dense != 0)
    if on_grid:
        effective = effective + (slow_on_grid(effective, weight) - effective).detach()
    return F.linear(x, effective, adapter.linear.bias), effective


def slow_on_grid(effective: Tensor, weight: Quantized) -> Tensor:
    """clamp(round(W' / scale) + zero point), number by number."""
    result = torch.zeros(R, C, dtype=torch.float64)
    for i in range(R):
        for j in range(C):
            scale = float(weight.scale[i, j // 8])
            zero = 0 if weight.zero_point is None else int(weight.zero_point[i, j // 8])
            fraction = float(effective[i, j].detach()) / scale
            whole = math.floor(fraction + 0.5)
            code = min(max(whole + zero, -(2 ** (weight.grid.bits - 1))), 2 ** (weight.grid.bits - 1) - 1)
            result[i, j] = (code - zero) * scale
    return result


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("method", METHODS_ON_CODES)
@pytest.mark.parametrize("symmetric", [False, True])
def test_forward_and_gradients_are_those_of_the_plain_formula(method: str, pattern: str, symmetric: bool) -> None:
    weight = quantized(pattern, symmetric=symmetric)
    adapter = adapter_on(weight, method)
    x = torch.randn(2, 5, C, dtype=torch.float64, requires_grad=True)
    ours = adapter(x)
    wanted, _ = plain(adapter, weight, x, method)
    torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-12)
    grad_y = torch.randn_like(ours)
    inputs = [x, *adapter.tensors().values()]
    got = torch.autograd.grad(ours, inputs, grad_y)
    expected = list(torch.autograd.grad(wanted, inputs, grad_y))
    if method == "lors":  # straight through the mask
        a, b = (tensor.detach() for tensor in inputs[1:])
        flat = grad_y.flatten(0, 1).T @ x.detach().flatten(0, 1)
        expected[1:] = [SCALE * b.T @ flat, SCALE * flat @ a.T]
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("method", ["lors", "sqft"])
def test_quantisation_aware_it_is_the_slow_rounding_and_the_gradient_goes_straight_through(
    method: str, bits: int, pattern: str
) -> None:
    weight = quantized(pattern, bits=bits)
    adapter = adapter_on(weight, method, quantization_aware=True)
    x = torch.randn(7, C, dtype=torch.float64, requires_grad=True)
    ours = adapter(x)
    wanted, effective = plain(adapter, weight, x, method, on_grid=True)
    torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-12)
    assert bool((codes_of(effective.detach(), weight.scales, weight.grid) != weight.codes).any())  # something moved
    grad_y = torch.randn_like(ours)
    inputs = [x, *adapter.tensors().values()]
    got = torch.autograd.grad(ours, inputs, grad_y)
    expected = list(torch.autograd.grad(wanted, inputs, grad_y))
    if method == "lors":
        a, b = (tensor.detach() for tensor in inputs[1:])
        flat = grad_y.T @ x.detach()
        expected[1:] = [SCALE * b.T @ flat, SCALE * flat @ a.T]
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", ["lors", "sqft"])
@pytest.mark.parametrize("bits", [3, 4])
def test_what_a_merge_computes_has_the_bits_of_what_was_trained(method: str, dtype: torch.dtype, bits: int) -> None:
    weight = quantized(bits=bits)
    adapter = adapter_on(weight, method, dtype, quantization_aware=True)
    exact = METHODS[method].adapter(nn.Linear(C, R, bias=False, dtype=torch.float64), rank=RANK, alpha=ALPHA)
    for name, tensor in adapter.tensors().items():
        exact.tensors()[name].data = tensor.data.double()
    codes = codes_of(exact.effective_weight(weight.weight(torch.float64)).detach(), weight.scales, weight.grid)
    adapter.linear.register_parameter("bias", None)
    trained = adapter(torch.eye(C, dtype=dtype)).T.detach()
    assert torch.equal(trained, values(codes, weight.scales, dtype))
    assert torch.equal(codes[~weight.mask()], weight.codes[~weight.mask()])  # zeros are zeros


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_it_lors_has_the_bits_of_lors_on_the_decoded_weight(dtype: torch.dtype) -> None:
    weight = quantized("2:4")
    ours = adapter_on(weight, "lors", dtype)
    linear = nn.Linear(C, R, dtype=dtype)
    linear.weight.data, linear.bias = weight.weight(dtype), ours.linear.bias
    dense = LoRS(linear, rank=RANK, alpha=ALPHA)
    for name, tensor in ours.tensors().items():
        dense.tensors()[name].data = tensor.data.clone()
    x, results = torch.randn(9, C, dtype=dtype), []
    for adapter in (ours, dense):
        leaf = x.clone().requires_grad_()
        y = adapter(leaf)
        y.square().sum().backward()
        results.append([y, leaf.grad, *(tensor.grad for tensor in adapter.tensors().values())])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(
    ("method", "aware"), [("lors", False), ("lors", True), ("sqft", False), ("sqft", True), ("lora", False)]
)
def test_saves_x_codes_scales_and_adapters_and_no_more(method: str, aware: bool, pattern: str) -> None:
    adapter = adapter_on(quantized(pattern), method, torch.float32, **({"quantization_aware": True} if aware else {}))
    x = torch.randn(2, 5, C, requires_grad=True)
    _, saved = saved_for_backward(lambda: adapter(x))
    assert isinstance(adapter.linear, Int4Linear)
    wanted = [x, *(one for one in adapter.linear.stored if one is not None), *adapter.tensors().values()]
    kept = {tensor.untyped_storage().data_ptr() for tensor in saved}
    own = {tensor.untyped_storage().data_ptr() for tensor in wanted}
    extra = [tensor for tensor in saved if tensor.untyped_storage().data_ptr() in kept - own]
    assert sum(tensor.nbytes for tensor in extra) <= (2 * RANK * 10 * 4 if method == "lora" else 0)  # x A^T, scaled


@pytest.mark.parametrize("aware", [False, True])
def test_sqft_makes_the_gradient_of_its_update_in_blocks_of_rows(monkeypatch: pytest.MonkeyPatch, aware: bool) -> None:
    monkeypatch.setattr(lors, "UPDATE_BYTES", 8 * C * 3 + 1)  # three rows, of twenty
    weight = quantized("2:4")
    adapter = adapter_on(weight, "sqft", quantization_aware=aware)
    x = torch.randn(7, C, dtype=torch.float64, requires_grad=True)
    ours, (wanted, _) = adapter(x), plain(adapter, weight, x, "sqft", on_grid=aware)
    inputs, grad_y = [x, *adapter.tensors().values()], torch.randn_like(ours)
    got, expected = (torch.autograd.grad(y, inputs, grad_y) for y in (ours, wanted))
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


@pytest.mark.parametrize("method", METHODS_ON_CODES)
def test_a_step_takes_one_weight_in_full_beside_its_inputs_and_gradients(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, columns, tokens = 2048, 1024, 8
    monkeypatch.setattr(lors, "UPDATE_BYTES", 1 << 18)
    torch.manual_seed(0)
    weight = torch.randn(rows, columns)
    weight.view(-1, 4)[:, [1, 2]] = 0
    grid = Grid(4, 128)
    scales = fit(weight, grid, torch.bfloat16)
    linear: Any = Int4Linear(Quantized(codes_of(weight, scales, grid), *scales, grid), None, torch.bfloat16)
    adapter = METHODS[method].adapter(linear, rank=RANK, alpha=ALPHA)
    x = torch.randn(1, tokens, columns, dtype=torch.bfloat16, requires_grad=True)

    def step() -> None:
        adapter(x).sum().backward()

    peak = allocated_peak(step, torch.device("cpu"))
    activations = 4 * 2 * tokens * (rows + columns) + 3 * 4 * RANK * (rows + columns)
    # what is made of a weight in the cache of a core
    assert peak <= 2 * rows * columns + activations + 4 * (1 << 20)


@pytest.mark.parametrize(("pattern", "most"), [("2:4", 0.2), ("half", 0.21)])
def test_frozen_weights_take_a_fifth_of_bfloat16(pattern: str, most: float) -> None:
    weight = torch.randn(64, 2048)
    weight.view(-1, 4)[:, [1, 2]] = 0
    if pattern == "half":
        weight = weight.view(64, 512, 4).transpose(1, 2).reshape(64, 2048).contiguous()
    grid = Grid(4, 128)
    scales = fit(weight, grid, torch.bfloat16)
    linear = Int4Linear(Quantized(codes_of(weight, scales, grid), *scales, grid), None, torch.bfloat16)
    held = sum(parameter.nbytes for parameter in linear.parameters())
    assert held / (2 * weight.numel()) <= most


@pytest.mark.parametrize("pattern", PATTERNS)
def test_opcheck(pattern: str) -> None:
    weight = quantized(pattern)
    adapter = adapter_on(weight, "lors", torch.float32)
    assert isinstance(adapter, LoRS)
    x = torch.randn(3, 5, C, requires_grad=True)
    for bits, masked in ((0, False), (4, False), (4, True)):
        operands = Operands(*adapter.stored, *adapter.factors, None, SCALE, slot=-1, bits=bits, masked=masked)
        torch.library.opcheck(torch.ops.lors.linear, (x, adapter.linear.bias, *operands))
    frozen = operands._replace(lora_A=operands.lora_A.detach(), lora_B=operands.lora_B.detach())
    torch.library.opcheck(torch.ops.lors.masked_grads, (torch.randn(5, C), torch.randn(5, R), *frozen))


def test_more_than_four_bits_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 4 bits, got 8"):
        Int4Linear(quantized(bits=8), None, torch.float32)
