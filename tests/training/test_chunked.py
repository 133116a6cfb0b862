"""The chunked loss of a head against all logits in float64: any chunk, any teacher, and what is saved."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lors_cli.training import chunked
from lors_cli.training.chunked import Head, Teacher, chunked_loss
from tests.adapters.common import saved_for_backward

V, H, N = 40, 16, 13


def head_inputs(bias: bool) -> tuple[Tensor, Head, Tensor]:
    torch.manual_seed(0)
    linear = nn.Linear(H, V, bias=bias, dtype=torch.float64).requires_grad_(False)
    states = torch.randn(N, H, dtype=torch.float64, requires_grad=True)
    return states, Head(linear.weight, linear.bias), torch.randint(V, (N,))


def made_teacher(weight: float, temperature: float) -> Teacher:
    linear = nn.Linear(6, V, dtype=torch.float64).requires_grad_(False)
    return Teacher(torch.randn(N, 6, dtype=torch.float64), Head(linear.weight, linear.bias), weight, temperature)


@pytest.mark.parametrize("tokens", [1, 3, 5, N, 1000])
@pytest.mark.parametrize("bias", [False, True])
def test_any_chunk_gives_the_loss_and_the_gradient_of_all_logits(
    monkeypatch: pytest.MonkeyPatch, tokens: int, bias: bool
) -> None:
    monkeypatch.setattr(chunked, "CPU_ELEMENTS", tokens * V + V // 2)
    assert chunked.tokens_per_chunk(V, torch.device("cpu")) == tokens
    states, head, targets = head_inputs(bias)
    wanted = F.cross_entropy(F.linear(states, *head), targets, reduction="sum")
    sums = chunked_loss(states, head, targets)
    torch.testing.assert_close(sums.loss, wanted, rtol=1e-12, atol=0)
    torch.testing.assert_close(sums.data, wanted.detach(), rtol=1e-12, atol=0)
    (gradient,) = torch.autograd.grad(3 * sums.loss, states)
    torch.testing.assert_close(gradient, 3 * torch.autograd.grad(wanted, states)[0], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("weight", "temperature"), [(0.3, 2.0), (1.0, 1.0), (0.5, 0.7)])
def test_a_teacher_of_another_width_against_kl_div(
    monkeypatch: pytest.MonkeyPatch, weight: float, temperature: float
) -> None:
    monkeypatch.setattr(chunked, "CPU_ELEMENTS", 5 * V)
    states, head, targets = head_inputs(bias=True)
    teacher = made_teacher(weight, temperature)
    z, t = F.linear(states, *head), F.linear(teacher.states, *teacher.head)
    kl = F.kl_div(F.log_softmax(z / temperature, 1), F.softmax(t / temperature, 1), reduction="sum")
    data, divergence = F.cross_entropy(z, targets, reduction="sum"), temperature**2 * kl
    wanted = (1 - weight) * data + weight * divergence
    sums = chunked_loss(states, head, targets, teacher)
    for one, other in zip(sums, (wanted, data, divergence), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=0)
    (gradient,) = torch.autograd.grad(sums.loss, states)
    torch.testing.assert_close(gradient, torch.autograd.grad(wanted, states)[0], rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("taught", [False, True])
def test_gradcheck(monkeypatch: pytest.MonkeyPatch, taught: bool) -> None:
    monkeypatch.setattr(chunked, "CPU_ELEMENTS", 4 * V)
    states, head, targets = head_inputs(bias=True)
    teacher = made_teacher(0.4, 1.7) if taught else None
    assert torch.autograd.gradcheck(lambda x: chunked_loss(x, head, targets, teacher).loss, states)


@pytest.mark.parametrize("trained", ["weight", "bias"])
def test_a_trainable_head_is_refused(trained: str) -> None:
    states, head, targets = head_inputs(bias=True)
    getattr(head, trained).requires_grad_()
    with pytest.raises(ValueError, match="a frozen head"):
        chunked_loss(states, head, targets)


def test_the_gradient_of_bfloat16_states() -> None:
    states, head, targets = head_inputs(bias=False)
    rounded = states.detach().bfloat16().requires_grad_()
    weight = head.weight.bfloat16()
    (gradient,) = torch.autograd.grad(chunked_loss(rounded, Head(weight, None), targets).loss, rounded)
    exact = rounded.detach().double().requires_grad_()
    loss = F.cross_entropy(F.linear(exact, weight.double()), targets, reduction="sum")
    (wanted,) = torch.autograd.grad(loss, exact)
    assert gradient.dtype == torch.bfloat16
    assert (gradient.double() - wanted).norm() < 0.01 * wanted.norm()


def test_only_the_gradient_of_the_states_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "CPU_ELEMENTS", 3 * V)
    states, head, targets = head_inputs(bias=True)
    teacher = made_teacher(0.5, 2.0)
    _, saved = saved_for_backward(lambda: chunked_loss(states, head, targets, teacher).loss)
    assert [tensor.shape for tensor in saved] == [states.shape]
    with torch.no_grad():
        alone, saved = saved_for_backward(lambda: chunked_loss(states, head, targets, teacher).loss)
    assert not saved
    torch.testing.assert_close(alone, chunked_loss(states, head, targets, teacher).loss.detach(), rtol=0, atol=0)
