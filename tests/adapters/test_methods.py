"""What holds for every adapter method."""

from typing import Any

import pytest
import torch

from lors_cli.adapters import METHODS
from lors_cli.adapters.spp import SPP
from tests.adapters.common import ALPHA, RANK, SCALE, C, R, gradients, make, saved_for_backward, sparse_linear

EVERY = list(METHODS)
FORMULATIONS = [(name, way) for name, row in METHODS.items() for way in row.formulations]
KEEPING = [name for name, row in METHODS.items() if row.keeps_zeros]


@pytest.mark.parametrize(("method", "way"), FORMULATIONS)
def test_forward_is_the_product_with_the_merged_weight(method: str, way: str) -> None:
    adapter = make(method, way, bias=True)
    x = torch.randn(3, 5, C, dtype=torch.float64)
    merged = adapter.effective_weight(adapter.linear.weight)
    torch.testing.assert_close(adapter(x), x @ merged.T + adapter.linear.bias)


@pytest.mark.parametrize("method", EVERY)
def test_starts_as_the_frozen_linear(method: str) -> None:
    linear = sparse_linear()
    adapter = METHODS[method].adapter(linear, rank=RANK, alpha=ALPHA)
    x = torch.randn(4, C, dtype=torch.float64)
    torch.testing.assert_close(adapter(x), x @ linear.weight.T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("method", KEEPING)
def test_merging_keeps_every_zero(method: str, dtype: torch.dtype) -> None:
    adapter = make(method, dtype=dtype)
    weight = adapter.linear.weight.data
    merged = adapter.effective_weight(weight)
    assert merged.dtype == dtype
    assert int(((weight == 0) & (merged != 0)).sum()) == 0
    assert (merged != weight)[weight != 0].any()


def test_lora_does_not_keep_zeros() -> None:
    adapter = make("lora")
    assert (adapter.effective_weight(adapter.linear.weight)[3] != 0).all()


@pytest.mark.parametrize(("method", "way"), FORMULATIONS)
def test_formulations_have_the_gradients_of_the_first(method: str, way: str) -> None:
    x = torch.randn(2, 5, C, dtype=torch.float64)
    results = []
    for formulation in (None, way):
        adapter, leaf = make(method, formulation, bias=True), x.clone().requires_grad_()
        (adapter(leaf) ** 3).sum().backward()
        results.append([leaf.grad, *gradients(adapter).values()])
    for first, other in zip(*results, strict=True):
        torch.testing.assert_close(first, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("method", "way"), FORMULATIONS)
def test_autocast_changes_results_by_rounding_only(method: str, way: str) -> None:
    adapter = make(method, way, dtype=torch.float32, bias=True)
    x, grad_y = torch.randn(10, C), torch.randn(10, R)
    adapter(x).backward(grad_y)
    wanted = gradients(adapter)
    with torch.autocast("cpu", torch.bfloat16):
        y = adapter(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), adapter(x), rtol=0.05, atol=0.05)
    y.backward(grad_y.bfloat16())
    for name, gradient in gradients(adapter).items():
        assert gradient.dtype == torch.float32
        assert (gradient - wanted[name]).norm() < 0.02 * wanted[name].norm()


@pytest.mark.parametrize("method", ["spp", "sqft"])
@pytest.mark.parametrize("how", [True, "reentrant"])
@pytest.mark.parametrize("first_block", [False, True])
def test_checkpointing_changes_no_gradient_and_saves_less(method: str, how: Any, first_block: bool) -> None:
    x = torch.randn(6, C, dtype=torch.float64, requires_grad=not first_block)
    sizes, grads = [], []
    for checkpoint in (False, how):
        adapter = make(method, adapter_checkpointing=checkpoint)
        y, saved = saved_for_backward(lambda adapter=adapter: adapter(x))  # type: ignore[misc]
        own = {p.untyped_storage().data_ptr() for p in adapter.parameters()}
        sizes.append(sum(t.numel() for t in saved if t.untyped_storage().data_ptr() not in own and t.shape != x.shape))
        (y**3).sum().backward()
        grads.append(list(gradients(adapter).values()))
    assert sizes[0] >= R * C
    assert sizes[1] <= R * N_SAVED
    for plain, checkpointed in zip(*grads, strict=True):
        torch.testing.assert_close(plain, checkpointed, rtol=0, atol=0)


N_SAVED = 6  # rows of x: what SPP's second output may keep


@pytest.mark.parametrize("method", ["spp", "sqft", "lora"])
def test_autograd_methods_pass_gradcheck(method: str) -> None:
    adapter = make(method)
    parameters = list(adapter.tensors())
    x = torch.randn(3, C, dtype=torch.float64, requires_grad=True)

    def forward(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(adapter, dict(zip(parameters, values, strict=True)), (x,))  # type: ignore[no-any-return]

    values = [p.detach().clone().requires_grad_() for p in adapter.tensors().values()]
    assert torch.autograd.gradcheck(forward, (x, *values))


@pytest.mark.parametrize("way", ["columns", "merged"])
def test_formulations_of_spp_pass_gradcheck(way: str) -> None:
    adapter = make("spp", way)
    adapter.requires_grad_(False)
    x = torch.randn(3, C, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(adapter, (x,))


def test_sqft_gradient_is_masked() -> None:
    adapter = make("sqft")
    x, grad_y = torch.randn(10, C, dtype=torch.float64), torch.randn(10, R, dtype=torch.float64)
    adapter(x).backward(grad_y)
    masked = (grad_y.T @ x) * (adapter.linear.weight != 0)
    a, b = adapter.tensors()["lora_A"], adapter.tensors()["lora_B"]
    torch.testing.assert_close(a.grad, SCALE * b.detach().T @ masked)
    torch.testing.assert_close(b.grad, SCALE * masked @ a.detach().T)


def test_spp_repeats_each_row_of_alpha_over_consecutive_rows() -> None:
    adapter = make("spp")
    assert isinstance(adapter, SPP)
    weight = adapter.linear.weight.data
    expected = torch.empty_like(weight)
    for i in range(R):
        factor = adapter.spp_alpha[i // (R // RANK)] * adapter.spp_beta[i]
        expected[i] = weight[i] + SCALE * weight[i] * factor.detach()
    torch.testing.assert_close(adapter.effective_weight(weight).detach(), expected)


@pytest.mark.parametrize(("method", "way"), [("lora", None), ("spp", None), ("spp", "columns")])
def test_dropout_acts_on_the_update_only_in_training(method: str, way: str | None) -> None:
    adapter = make(method, way, dropout=0.5)
    x = torch.randn(200, C, dtype=torch.float64)
    adapter.eval()
    torch.testing.assert_close(adapter(x), x @ adapter.effective_weight(adapter.linear.weight).T)
    adapter.train()
    assert not torch.allclose(adapter(x), x @ adapter.effective_weight(adapter.linear.weight).T)
    frozen = x @ adapter.linear.weight.T
    dead = adapter(x) - frozen  # the frozen path is never dropped
    for parameter in adapter.tensors().values():
        parameter.data.zero_()
    torch.testing.assert_close(adapter(x), frozen)
    assert dead.abs().sum() > 0


@pytest.mark.parametrize("method", EVERY)
def test_shapes_are_those_of_the_module(method: str) -> None:
    adapter = make(method)
    shapes = {name: tuple(tensor.shape) for name, tensor in adapter.tensors().items()}
    assert shapes == METHODS[method].adapter.shapes(R, C, RANK)


SPP_WAYS = list(METHODS["spp"].formulations)
STARTS = {None: (False, True), "spp_beta": (False, True), "spp_alpha": (True, False), "both": (True, True)}


@pytest.mark.parametrize("way", SPP_WAYS)
@pytest.mark.parametrize("start", [*STARTS, "none"])
def test_spp_starts_at_zero_where_it_is_asked_to(way: str, start: str | None) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"rank": RANK, "alpha": ALPHA, "zero_init": start}
    made: Any = METHODS["spp"].formulation(way).adapter(sparse_linear(), **options)
    assert (not made.spp_alpha.any(), not made.spp_beta.any()) == STARTS.get(start, (False, False))
    x = torch.randn(5, C, dtype=torch.float64)
    same = torch.equal(made.effective_weight(made.linear.weight), made.linear.weight)
    assert same == (start != "none")  # the model begins as the pruned one unless neither factor is zero
    (made(x) ** 3).sum().backward()
    grads = gradients(made)
    # the gradient of each factor has the other one in it
    assert bool(grads["spp_alpha"].any()) == bool(made.spp_beta.any())
    assert bool(grads["spp_beta"].any()) == bool(made.spp_alpha.any())
    if start == "both":
        assert all(gradient.count_nonzero() == 0 for gradient in grads.values())


@pytest.mark.parametrize("way", SPP_WAYS)
def test_spp_without_beta_learns_alpha_alone(way: str) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"rank": RANK, "alpha": ALPHA, "spp_beta": False}
    made: Any = METHODS["spp"].formulation(way).adapter(sparse_linear(), **options)
    weight, x = made.linear.weight.data, torch.randn(5, C, dtype=torch.float64)
    assert torch.equal(made.effective_weight(weight), weight)
    made.spp_alpha.data.normal_()
    alpha = made.spp_alpha.detach().clone().requires_grad_()
    rows = torch.stack([weight[i] * (1 + SCALE * alpha[i // (R // RANK)]) for i in range(R)])
    torch.testing.assert_close(made(x), x @ rows.T)
    torch.testing.assert_close(made.effective_weight(weight), rows)
    (made(x) ** 3).sum().backward()
    ((x @ rows.T) ** 3).sum().backward()
    torch.testing.assert_close(made.spp_alpha.grad, alpha.grad, rtol=0, atol=1e-9)
    assert [name for name, _ in made.named_parameters() if not name.startswith("linear")] == ["spp_alpha"]
    assert torch.equal(made.tensors()["spp_beta"], torch.ones(R, 1, dtype=torch.float64))  # as the file has it
    assert made.trained(R, C, RANK, spp_beta=False) == {"spp_alpha": (RANK, C)}
