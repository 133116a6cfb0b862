from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import start_processes
from torch.utils.checkpoint import checkpoint

from lors_cli.adapters import METHODS
from lors_cli.adapters.base import LowRankAdapter
from lors_cli.adapters.initialize import initialize_from_gradient, initialize_from_gradient_svd, initialize_from_inputs
from lors_cli.adapters.lors import LoRS
from lors_cli.adapters.packed_linear import PackedLinear
from lors_cli.errors import LorsError

Start = Callable[[dict[str, LowRankAdapter], Tensor, Tensor, int], None]


def problem(scale: float = 1.0, method: str = "lors") -> tuple[LowRankAdapter, Tensor, Tensor]:
    """A linear and a batch whose inputs and weight gradient have decaying spectra."""
    torch.manual_seed(0)
    linear = nn.Linear(96, 64, bias=False, dtype=torch.float64)
    linear.weight.data[torch.rand(64, 96) < 0.5] = 0
    adapter = METHODS[method].adapter(linear.requires_grad_(False), rank=8, alpha=8)
    assert isinstance(adapter, LowRankAdapter)
    x = torch.randn(40, 96, dtype=torch.float64) * torch.logspace(0, -1, 96, dtype=torch.float64)
    target = torch.randn(40, 64, dtype=torch.float64) * scale
    return adapter, x, target


def run(adapters: dict[str, LowRankAdapter], x: Tensor, target: Tensor, parts: int) -> None:
    """Forward and backward over some micro-batches; the weight gradient is target^T x."""
    (adapter,) = adapters.values()
    for part, wanted in zip(x.chunk(parts), target.chunk(parts), strict=True):
        (adapter(part) * wanted).sum().backward()


def gradient(adapters: dict[str, LowRankAdapter], x: Tensor, target: Tensor, parts: int) -> None:
    initialize_from_gradient(adapters, lambda: run(adapters, x, target, parts))


def gradient_svd(adapters: dict[str, LowRankAdapter], x: Tensor, target: Tensor, parts: int) -> None:
    initialize_from_gradient_svd([adapters], lambda: run(adapters, x, target, parts))


def eva(adapters: dict[str, LowRankAdapter], x: Tensor, target: Tensor, parts: int) -> None:
    def forward() -> None:
        for part in x.chunk(parts):
            next(iter(adapters.values()))(part)

    initialize_from_inputs(adapters, forward)


STARTS: dict[str, tuple[Start, float]] = {
    "gradient": (gradient, 0.99),
    "gradient_svd": (gradient_svd, 1 - 1e-12),
    "eva": (eva, 0.99),
}


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("method", ["lors", "sqft", "lora"])
@pytest.mark.parametrize("start", STARTS)
def test_captures_the_energy_of_the_exact_singular_vectors(start: str, method: str, parts: int) -> None:
    adapter, x, target = problem(method=method)
    begin, share = STARTS[start]
    begin({"linear": adapter}, x, target, parts)
    matrix = x if start == "eva" else target.T @ x
    if method == "sqft" and start == "gradient":
        matrix = matrix * (adapter.linear.weight != 0)  # what its own, masked backward sees
    best = torch.linalg.svdvals(matrix)[:8].square().sum()
    captured = (matrix @ adapter.lora_A.T).square().sum()
    assert share * best <= captured <= best * (1 + 1e-12)
    assert adapter.lora_A.shape == (8, 96)
    torch.testing.assert_close(adapter.lora_A @ adapter.lora_A.T, torch.eye(8, dtype=torch.float64))
    assert adapter.lora_B.shape == (64, 8)
    assert not adapter.lora_B.any()
    assert adapter.lora_A.grad is None
    assert all(tensor.requires_grad for tensor in adapter.tensors().values())
    torch.testing.assert_close(adapter(x), x @ adapter.linear.weight.T)  # training starts at the pruned model


@pytest.mark.parametrize("start", STARTS)
def test_the_same_seed_gives_the_same_start(start: str) -> None:
    starts = []
    for seed in (1, 1, 2):
        adapter, x, target = problem()
        torch.manual_seed(seed)
        STARTS[start][0]({"linear": adapter}, x, target, 2)
        starts.append(adapter.lora_A.detach())
    assert torch.equal(starts[0], starts[1])
    assert torch.equal(starts[0], starts[2]) == (start == "gradient_svd")  # which draws nothing


def test_padding_does_not_count_for_the_inputs() -> None:
    adapter, x, _ = problem()
    noise = torch.randn(10, 96, dtype=torch.float64) * 100
    padded = torch.cat([x, noise])
    real = torch.arange(50) < 40
    initialize_from_inputs({"linear": adapter}, lambda: adapter(padded), tokens=lambda x: x[real])  # type: ignore[arg-type, return-value]
    best = torch.linalg.svdvals(x)[:8].square().sum()
    assert (x @ adapter.lora_A.T).square().sum() >= 0.99 * best


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


def test_block_by_block_under_activation_checkpointing_and_with_a_packed_base() -> None:
    torch.manual_seed(0)
    adapters: dict[str, LowRankAdapter] = {}
    for i in range(3):
        linear = nn.Linear(24, 24, dtype=torch.float64)
        linear.weight.data[torch.rand(24, 24) < 0.5] = 0
        adapters[f"{i}"] = LoRS(PackedLinear(linear), rank=3, alpha=3)
    x = torch.randn(30, 24, dtype=torch.float64)
    calls = 0

    def loss(checkpointing: bool) -> Tensor:
        states = x
        for adapter in adapters.values():
            layer: Any = lambda states, adapter=adapter: adapter(states).tanh()  # noqa: E731
            states = checkpoint(layer, states, use_reentrant=False) if checkpointing else layer(states)
        return states.square().sum()

    def backward() -> None:
        nonlocal calls
        calls += 1
        loss(checkpointing=True).backward()

    weights = [adapter.linear.dense_weight().requires_grad_() for adapter in adapters.values()]  # type: ignore[operator]
    states = x
    for weight, adapter in zip(weights, adapters.values(), strict=True):
        states = nn.functional.linear(states, weight, adapter.linear.bias).tanh()
    gradients = torch.autograd.grad(states.square().sum(), weights)
    for start in (
        lambda: initialize_from_gradient_svd([{name: adapter} for name, adapter in adapters.items()], backward),
        lambda: initialize_from_gradient(adapters, backward, sweeps=12),
    ):
        start()
        for exact, adapter in zip(gradients, adapters.values(), strict=True):
            wanted = torch.linalg.svd(exact).Vh[:3]
            torch.testing.assert_close(adapter.lora_A.T @ adapter.lora_A, wanted.T @ wanted, rtol=0, atol=1e-6)
    assert calls == 3 + 24


@pytest.mark.parametrize("scale", [0.0, float("nan")])
@pytest.mark.parametrize("start", STARTS)
def test_what_is_zero_or_broken_is_an_error(scale: float, start: str) -> None:
    adapter, x, target = problem(scale)
    what = "inputs of" if start == "eva" else "gradient over"
    with pytest.raises(LorsError, match=f"linear: the {what} the first batch"):
        STARTS[start][0]({"linear": adapter}, x * scale if start == "eva" else x, target, 1)


def _half(rank: int, directory: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{directory}/group", rank=rank, world_size=2)

    def add_up(tensor: Tensor) -> Tensor:
        dist.all_reduce(tensor)
        return tensor

    whole, x, target = problem()
    torch.manual_seed(1)
    initialize_from_gradient({"linear": whole}, lambda: run({"linear": whole}, x, target, 2))
    adapter, x, target = problem()
    mine = x.chunk(2)[rank], target.chunk(2)[rank]
    torch.manual_seed(1)
    initialize_from_gradient({"linear": adapter}, lambda: run({"linear": adapter}, *mine, 1), add_up=add_up)
    torch.testing.assert_close(adapter.lora_A, whole.lora_A)
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available(), reason="this build of PyTorch has no torch.distributed")
def test_two_processes_with_half_of_the_batch_each_start_like_one(tmp_path: Path) -> None:
    start_processes(_half, (str(tmp_path),), nprocs=2, start_method="fork")  # torch is imported already
