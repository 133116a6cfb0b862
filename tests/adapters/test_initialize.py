import pytest
import torch
from torch import nn

from lors_cli.adapters import LoRS
from lors_cli.adapters.initialize import initialize_from_gradient
from lors_cli.errors import LorsError


def problem(scale: float = 1.0) -> tuple[LoRS, torch.Tensor, torch.Tensor]:
    """A linear and a batch whose weight gradient has a decaying spectrum."""
    torch.manual_seed(0)
    linear = nn.Linear(96, 64, bias=False, dtype=torch.float64)
    linear.weight.data[torch.rand(64, 96) < 0.5] = 0
    adapter = LoRS(linear.requires_grad_(False), rank=8, alpha=8)
    x = torch.randn(40, 96, dtype=torch.float64) * torch.logspace(0, -1, 96, dtype=torch.float64)
    target = torch.randn(40, 64, dtype=torch.float64) * scale
    return adapter, x, target


def test_captures_the_energy_of_the_exact_singular_vectors() -> None:
    adapter, x, target = problem()

    def backward() -> None:
        for part, wanted in zip(x.split(20), target.split(20), strict=True):  # two micro-batches
            (adapter(part) * wanted).sum().backward()

    initialize_from_gradient({"linear": adapter}, backward)
    gradient = target.T @ x
    best = torch.linalg.svdvals(gradient)[:8].square().sum()
    captured = (gradient @ adapter.lora_A.T).square().sum()
    assert captured <= best * (1 + 1e-12)
    assert captured >= 0.99 * best
    assert adapter.lora_A.shape == (8, 96)
    torch.testing.assert_close(adapter.lora_A @ adapter.lora_A.T, torch.eye(8, dtype=torch.float64))
    assert adapter.lora_B.shape == (64, 8)
    assert not adapter.lora_B.any()
    assert adapter.lora_A.grad is None


def test_calls_backward_twice_a_sweep_and_forms_no_weight_gradient() -> None:
    adapter, x, target = problem()
    calls = 0

    def backward() -> None:
        nonlocal calls
        calls += 1
        (adapter(x) * target).sum().backward()

    initialize_from_gradient({"linear": adapter}, backward, sweeps=3)
    assert calls == 6
    assert adapter.linear.weight.grad is None


@pytest.mark.parametrize("scale", [0.0, float("nan")])
def test_a_zero_or_broken_gradient_is_an_error(scale: float) -> None:
    adapter, x, target = problem(scale)
    with pytest.raises(LorsError, match="linear: the gradient over the first batch"):
        initialize_from_gradient({"linear": adapter}, lambda: (adapter(x) * target).sum().backward())
