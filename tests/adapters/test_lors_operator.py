"""The operator where PyTorch takes models apart: compile, checkpoints, autocast, sharding. Nothing extra is saved."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch._aot_autograd.utils import make_boxed_func
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.multiprocessing.spawn import start_processes
from torch.utils.checkpoint import checkpoint

from lors_cli.adapters import METHODS
from lors_cli.adapters.lors import LoRS, Operands
from lors_cli.adapters.lors_listing import LoRSListing
from lors_cli.adapters.packed_linear import PackedLinear
from tests.adapters.common import SCALE, C, R, gradients, make, saved_for_backward, sparse_linear


def packed(layout: str | None, dtype: torch.dtype = torch.float64, *, bias: bool = False) -> tuple[LoRS, LoRS]:
    """The same adapter around a dense and around a packed weight."""
    dense = make("lors", bias=bias, dtype=dtype)
    assert isinstance(dense, LoRS)
    if layout == "2:4":
        dense.linear.weight.data.view(-1, 4)[:, [0, 2]] = 0
    ours = LoRS(PackedLinear(dense.linear, layout), rank=dense.rank, alpha=dense.scale * dense.rank)
    for name, tensor in dense.tensors().items():
        ours.tensors()[name].data = tensor.data.clone()
    return dense, ours


@pytest.mark.parametrize("layout", ["dense", "2:4", "bitmask"])
@pytest.mark.parametrize("bias", [False, True])
def test_opcheck(layout: str, bias: bool) -> None:
    dense, ours = packed(None if layout == "dense" else layout, torch.float32, bias=bias)
    adapter = dense if layout == "dense" else ours
    x = torch.randn(3, 5, C, requires_grad=True)
    operands = Operands(*adapter.stored, adapter.lora_A, adapter.lora_B, seed=None, scale=SCALE, slot=-1)
    torch.library.opcheck(torch.ops.lors.linear, (x, adapter.linear.bias, *operands))
    plain = operands._replace(lora_A=adapter.lora_A.detach(), lora_B=adapter.lora_B.detach())
    torch.library.opcheck(torch.ops.lors.effective_weight, (torch.bfloat16, *plain))
    torch.library.opcheck(torch.ops.lors.linear_input_grad, (torch.randn(4, R), *plain))


def test_opcheck_of_spp() -> None:
    adapter = METHODS["spp"].formulation("merged").adapter(sparse_linear(dtype=torch.float32), rank=4, alpha=4)
    x = torch.randn(3, 5, C, requires_grad=True)
    torch.library.opcheck(torch.ops.lors.spp_linear, (x, adapter.linear.weight, *adapter.tensors().values(), 0.5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["2:4", "bitmask"])
def test_a_packed_base_gives_the_same_bits(layout: str, dtype: torch.dtype) -> None:
    dense, ours = packed(layout, dtype, bias=True)
    assert ours.stored.layout == layout
    x = torch.randn(10, C, dtype=dtype)
    results = []
    for adapter in (dense, ours):
        leaf = x.clone().requires_grad_()
        y = adapter(leaf)
        y.square().sum().backward()
        results.append([y, leaf.grad, *gradients(adapter).values()])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
    assert isinstance(ours.linear, PackedLinear)
    assert torch.equal(ours.linear.dense_weight(), dense.linear.weight)


def compiled(module: nn.Module) -> tuple[Callable[[Tensor], Tensor], list[Any]]:
    """`module` as torch.compile partitions it, and what its forward hands to the backward besides its inputs."""
    kept: list[Any] = []

    def run(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        return make_boxed_func(graph.forward)

    def forward(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        outputs = next(node for node in graph.graph.nodes if node.op == "output").args[0]
        kept.extend(node.meta["val"] for node in outputs if node is not None and node.op != "placeholder")
        return run(graph, inputs)

    backend = aot_autograd(fw_compiler=forward, bw_compiler=run, partition_fn=min_cut_rematerialization_partition)
    torch._dynamo.reset()
    return torch.compile(module, fullgraph=True, backend=backend), kept


def of_the_weights_size(values: list[Any]) -> list[Tensor]:
    return [value for value in values if isinstance(value, Tensor) and value.numel() == R * C]


@pytest.mark.parametrize("layout", ["dense", "2:4"])
def test_compiles_whole_with_the_same_gradients_and_saves_nothing_of_the_weights_size(layout: str) -> None:
    dense, ours = packed("2:4", torch.float32, bias=True)
    adapter = dense if layout == "dense" else ours
    x = torch.randn(10, C, requires_grad=True)
    adapter(x).square().sum().backward()
    wanted = [x.grad, *gradients(adapter).values()]
    x.grad = None
    run, kept = compiled(adapter)
    run(x).square().sum().backward()
    for gradient, plain in zip([x.grad, *gradients(adapter).values()], wanted, strict=True):
        torch.testing.assert_close(gradient, plain)
    assert kept
    assert not of_the_weights_size(kept)


def test_the_listing_saves_the_merged_weight_under_compile() -> None:
    # the trap that the operator avoids; also a check that the check above can fail
    torch.manual_seed(0)
    run, kept = compiled(LoRSListing(sparse_linear(dtype=torch.float32), rank=4, alpha=6))
    run(torch.randn(10, C, requires_grad=True)).sum().backward()
    assert of_the_weights_size(kept)


def test_an_activation_checkpoint_changes_no_bit() -> None:
    results = []
    for checkpointing in (False, True):
        adapter = make("lors", dtype=torch.float32)
        x = torch.randn(10, C, generator=torch.Generator().manual_seed(0)).requires_grad_()
        y = checkpoint(adapter, x, use_reentrant=False) if checkpointing else adapter(x)
        y.square().sum().backward()
        results.append([y, x.grad, *gradients(adapter).values()])
    for plain, recomputed in zip(*results, strict=True):
        assert torch.equal(plain, recomputed)


def test_accumulation_adds_the_micro_batches_up() -> None:
    adapter = make("lors")
    x = torch.randn(12, C, dtype=torch.float64)
    adapter(x).square().sum().backward()
    wanted = gradients(adapter)
    for part in x.split(4):
        adapter(part).square().sum().backward()
    for name, gradient in gradients(adapter).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=0, atol=1e-12)


def test_autocast_rounds_the_merged_weight_once_and_saves_x_in_its_dtype() -> None:
    adapter = make("lors", dtype=torch.float32, bias=True)
    assert isinstance(adapter, LoRS)
    x = torch.randn(10, C, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y, saved = saved_for_backward(lambda: adapter(x))
    assert y.dtype == torch.bfloat16
    own = {p.untyped_storage().data_ptr() for p in adapter.parameters()}
    (kept,) = [t for t in saved if t.untyped_storage().data_ptr() not in own]
    assert kept.dtype == torch.bfloat16
    merged = adapter.effective_weight(adapter.linear.weight).bfloat16()
    wanted = nn.functional.linear(x.detach().bfloat16(), merged, adapter.linear.bias.bfloat16())
    torch.testing.assert_close(y, wanted)
    grad_y = torch.randn(10, R).bfloat16()
    y.backward(grad_y)
    assert x.grad is not None
    torch.testing.assert_close(x.grad, (grad_y @ merged).float())
    a, b = adapter.lora_A.detach().double(), adapter.lora_B.detach().double()
    exact = SCALE * (grad_y.double() @ b).T @ x.detach().bfloat16().double()
    torch.testing.assert_close(adapter.lora_A.grad, exact.float(), rtol=0.02, atol=0.02)
    exact = SCALE * grad_y.double().T @ (x.detach().bfloat16().double() @ a.T)
    torch.testing.assert_close(adapter.lora_B.grad, exact.float(), rtol=0.02, atol=0.02)


def test_another_dtype_without_autocast_is_an_error_as_in_a_linear() -> None:
    with pytest.raises(TypeError, match=r"torch\.float32, got torch\.bfloat16"):
        make("lors", dtype=torch.float32)(torch.randn(2, C, dtype=torch.bfloat16))


def test_stochastic_rounding_keeps_the_mean_of_an_update_in_the_dead_zone() -> None:
    torch.manual_seed(0)
    weight = torch.randn(128, 128) * 0.02
    for deviation, nearest in ((1e-6, 0.03), (1e-5, 0.28), (1e-4, 0.99)):
        update = torch.randn(128, 128) * deviation
        gains = []
        for stochastic in (False, True):
            linear = nn.Linear(128, 128, bias=False, dtype=torch.bfloat16)
            linear.weight.data = weight.bfloat16()
            adapter = LoRS(linear, rank=128, alpha=128, stochastic=stochastic)
            adapter.lora_A.data, adapter.lora_B.data = torch.eye(128), update.clone()
            steps = 100 if stochastic else 1
            mean = torch.zeros(128, 128)
            for step in range(steps):
                if adapter.rounding_seed is not None:
                    adapter.rounding_seed.fill_(step)
                mean += adapter(torch.eye(128, dtype=torch.bfloat16)).T.float() / steps
            moved = mean - linear.weight.float()
            gains.append(float((moved.detach() * update).sum() / update.square().sum()))
        assert gains[0] == pytest.approx(nearest, abs=0.05)
        assert gains[1] == pytest.approx(1, abs=0.15 if deviation < 1e-5 else 0.03)


def test_stochastic_rounding_is_the_same_in_both_directions_and_through_a_cache() -> None:
    adapter = make("lors", dtype=torch.bfloat16, stochastic=True)
    assert isinstance(adapter, LoRS)
    assert adapter.rounding_seed is not None
    x = torch.eye(C, dtype=torch.bfloat16).requires_grad_()
    seen: list[Tensor] = []
    for seed in (0, 1, 1):
        adapter.rounding_seed.fill_(seed)
        y, x.grad = adapter(x), None
        y.backward(torch.eye(C, R, dtype=torch.bfloat16))
        assert x.grad is not None
        assert torch.equal(y.T[:C], x.grad)
        seen.append(y.detach())
    assert torch.equal(seen[1], seen[2])
    assert not torch.equal(seen[0], seen[1])
    assert not seen[0].T[adapter.linear.weight == 0].any()


def _sharded(rank: int, directory: str, layout: str) -> None:
    """Two processes, each with half of a batch: DDP, and fully_shard where the base is sharded too."""
    dist.init_process_group("gloo", init_method=f"file://{directory}/{layout}", rank=rank, world_size=2)
    dense, ours = packed("2:4", torch.float32)
    plain = dense if layout == "dense" else ours
    x = torch.randn(8, C)
    plain(x).square().mean().backward()
    wanted = gradients(plain)
    half = x[rank * 4 : rank * 4 + 4]
    parallel = nn.parallel.DistributedDataParallel(plain)
    parallel(half).square().mean().backward()
    for name, gradient in gradients(plain).items():
        torch.testing.assert_close(gradient, wanted[name])
    dense, ours = packed("2:4", torch.float32)
    sharded: Any = fully_shard(nn.Sequential(dense if layout == "dense" else ours), mesh=init_device_mesh("cpu", (2,)))
    sharded(half).square().mean().backward()
    for name in wanted:
        torch.testing.assert_close(getattr(sharded[0], name).grad.full_tensor(), wanted[name])
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available(), reason="this build of PyTorch has no torch.distributed")
@pytest.mark.parametrize("layout", ["dense", "2:4"])
def test_two_processes_give_the_gradients_of_one(tmp_path: Path, layout: str) -> None:
    start_processes(_sharded, (str(tmp_path), layout), nprocs=2, start_method="fork")  # torch is imported already
