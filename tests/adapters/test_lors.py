import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lors_cli.adapters.lors import LoRS
from tests.adapters.common import SCALE, C, R, make, saved_for_backward


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(10,), (2, 5)])
def test_forward_and_gradients_equal_the_closed_formulas(bias: bool, shape: tuple[int, ...]) -> None:
    adapter = make("lors", bias=bias)
    assert isinstance(adapter, LoRS)
    w, a, b = adapter.linear.weight.data, adapter.lora_A.data, adapter.lora_B.data
    x = torch.randn(*shape, C, dtype=torch.float64, requires_grad=True)
    grad_y = torch.randn(*shape, R, dtype=torch.float64)
    y = adapter(x)
    y.backward(grad_y)
    merged = (w + SCALE * b @ a) * (w != 0)
    flat_x, flat_g = x.detach().reshape(-1, C), grad_y.reshape(-1, R)
    expected = x.detach() @ merged.T + (adapter.linear.bias.data if bias else 0)
    torch.testing.assert_close(y.detach(), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(x.grad, grad_y @ merged, rtol=0, atol=1e-10)
    torch.testing.assert_close(adapter.lora_A.grad, SCALE * b.T @ flat_g.T @ flat_x, rtol=0, atol=1e-10)
    torch.testing.assert_close(adapter.lora_B.grad, SCALE * flat_g.T @ flat_x @ a.T, rtol=0, atol=1e-10)
    assert adapter.linear.weight.grad is None
    assert not bias or adapter.linear.bias.grad is None


def test_input_gradient_passes_gradcheck() -> None:
    adapter = make("lors").requires_grad_(False)
    x = torch.randn(7, C, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(adapter, (x,))


def test_gradients_equal_autograd_of_the_masked_product_where_the_weight_is_dense() -> None:
    ours, reference = make("lors"), make("sqft")
    for adapter in (ours, reference):
        adapter.linear.weight.data.fill_(0.1)
    x = torch.randn(9, C, dtype=torch.float64)
    for adapter in (ours, reference):
        (adapter(x) ** 2).sum().backward()
    for name, parameter in ours.tensors().items():
        torch.testing.assert_close(parameter.grad, reference.tensors()[name].grad)


def test_saves_exactly_x_and_the_parameters() -> None:
    adapter = make("lors", bias=True)
    x = torch.randn(2, 5, C, dtype=torch.float64, requires_grad=True)
    _, saved = saved_for_backward(lambda: adapter(x))
    kept = {tensor.untyped_storage().data_ptr() for tensor in saved}
    assert isinstance(adapter, LoRS)
    wanted = (x, adapter.linear.weight, adapter.lora_A, adapter.lora_B)
    assert kept == {tensor.untyped_storage().data_ptr() for tensor in wanted}


def test_no_input_gradient_means_no_merge_in_backward() -> None:
    adapter = make("lors", dtype=torch.float32)
    y = adapter(torch.randn(10, C))
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    assert counter.get_total_flops() == 2 * (2 * 4 * R * 10 + 2 * 4 * C * 10)


def test_bfloat16_rounds_the_sum_once() -> None:
    adapter = make("lors", dtype=torch.bfloat16)
    assert isinstance(adapter, LoRS)
    assert adapter.lora_A.dtype == torch.float32
    weight = adapter.linear.weight.data
    exact = weight.double() + SCALE * adapter.lora_B.double() @ adapter.lora_A.double()
    rounded = torch.where(weight != 0, exact, 0).bfloat16()
    merged = adapter.effective_weight(weight)
    assert (merged != rounded).float().mean() < 0.01  # float32 against float64 before the rounding
    x = torch.randn(6, C, dtype=torch.bfloat16, requires_grad=True)
    y = adapter(x)
    y.sum().backward()
    assert y.dtype == torch.bfloat16
    assert adapter.lora_B.grad is not None
    assert adapter.lora_B.grad.dtype == torch.float32
