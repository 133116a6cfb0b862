import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from lors_cli.adapters import METHODS
from lors_cli.adapters.nf4_linear import is_installed, nf4_linear
from lors_cli.adapters.packed_linear import PackedLinear
from lors_cli.adapters.vectors import Vector, train_vectors
from tests.adapters.common import ALPHA, RANK, C, N, R, sparse_linear

WAYS = [(name, way) for name, row in METHODS.items() for way in row.formulations]


def adapted(method: str, way: str, linear: nn.Module) -> Any:
    """A normalisation and an adapter with numbers in all of its tensors."""
    made = METHODS[method].formulation(way).adapter(linear, rank=RANK, alpha=ALPHA)  # type: ignore[arg-type]
    for parameter in made.tensors().values():
        parameter.data = torch.randn_like(parameter) * 0.3
    norm = nn.LayerNorm(C, dtype=torch.float64)
    for parameter in norm.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return nn.Sequential(norm, made)


def gradients(model: nn.Module, x: Tensor, grad_y: Tensor, *names: str) -> tuple[dict[str, Tensor], Tensor]:
    """The gradients of vectors of `model`, and its output."""
    vectors = train_vectors(model, names)
    y: Tensor = model(x)
    y.backward(grad_y)
    found: dict[str, Any] = {name: vector.tensors()["value"].grad for name, vector in vectors.items()}
    return found, y.detach()


def by_hand(model: Any, x: Tensor, grad_y: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The same by autograd of the plain formula, with the effective weight as a constant."""
    norm, adapter = copy.deepcopy(model)
    plain = adapter.linear
    weight = adapter.effective_weight(plain.dense_weight() if isinstance(plain, PackedLinear) else plain.weight)
    vectors = {"0.weight": norm.weight, "0.bias": norm.bias, "1.bias": plain.bias}
    for vector in vectors.values():
        vector.requires_grad_()
    centred = x - x.mean(-1, keepdim=True)
    normal = centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    y = (normal * norm.weight + norm.bias) @ weight.detach().T + plain.bias
    grads = torch.autograd.grad(y, list(vectors.values()), grad_y)
    return dict(zip(vectors, grads, strict=True)), y.detach()


@pytest.mark.parametrize(("method", "way"), [*WAYS, ("lors", "packed")])
def test_the_gradients_are_autograds(method: str, way: str) -> None:
    torch.manual_seed(0)
    linear: Any = sparse_linear(bias=True)
    linear = PackedLinear(linear) if way == "packed" else linear
    model = adapted(method, "fused" if way == "packed" else way, linear)
    x, grad_y = torch.randn(2, N, C, dtype=torch.float64), torch.randn(2, N, R, dtype=torch.float64)
    wanted, y = by_hand(model, x, grad_y)
    got, ours = gradients(model, x, grad_y, *wanted)
    torch.testing.assert_close(ours, y)
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, msg=name)


@pytest.mark.skipif(not is_installed(), reason="needs bitsandbytes")
def test_the_bias_of_a_linear_in_four_bits() -> None:
    torch.manual_seed(0)
    model = METHODS["lora"].adapter(nf4_linear(nn.Linear(64, 128)), rank=RANK, alpha=ALPHA)
    x = torch.randn(N, 64)
    got, _ = gradients(model, x, torch.ones(N, 128), "bias")
    torch.testing.assert_close(got["bias"], torch.full((128,), float(N)))


@pytest.mark.parametrize("kind", [LlamaRMSNorm, GemmaRMSNorm, nn.LayerNorm, nn.RMSNorm])
def test_a_step_too_small_for_bfloat16_is_kept_and_the_module_computes_with_its_rounding(kind: Any) -> None:
    norm = kind(8).bfloat16()
    before, plain = norm.weight.detach().clone(), copy.deepcopy(norm)
    x = torch.randn(4, 8).bfloat16()
    vector = Vector(norm, "weight")
    trained = vector.tensors()["value"]
    assert isinstance(norm, kind)
    assert trained.dtype == torch.float32
    assert torch.equal(norm(x), plain(x))
    norm(x).sum().backward()
    assert trained.grad is not None
    with torch.no_grad():
        for _ in range(40):  # each of them is lost in bfloat16 at 1, together they are not
            trained.add_(2.0**-11)
    assert torch.equal(trained, before.float() + 40 * 2.0**-11)
    assert norm(x).dtype == torch.bfloat16
    plain.weight.data = trained.detach().bfloat16()
    assert torch.equal(norm(x), plain(x))
    assert not torch.equal(plain.weight, before)


def test_the_frozen_tensor_is_another_one() -> None:
    frozen = nn.Parameter(torch.ones(8), requires_grad=False)
    norm = nn.LayerNorm(8)
    norm.weight = frozen
    Vector(norm, "weight").tensors()["value"].data.mul_(2)
    assert torch.equal(frozen, torch.ones(8))
    torch.testing.assert_close(norm(torch.randn(3, 8)).square().mean(), torch.tensor(4.0), rtol=1e-3, atol=0)


def test_under_autocast_a_bias_has_a_gradient_of_its_own_dtype() -> None:
    torch.manual_seed(0)
    made = METHODS["lors"].adapter(nn.Linear(C, R), rank=RANK, alpha=ALPHA)
    bias = train_vectors(made, ["bias"])["bias"].tensors()["value"]
    with torch.autocast("cpu", torch.bfloat16):
        y = made(torch.randn(N, C))
    y.sum().backward()
    torch.testing.assert_close(bias.grad, torch.full((R,), float(N)))
    assert torch.equal(F.linear(torch.zeros(1, C), made.linear.weight, made.linear.bias)[0], bias)
