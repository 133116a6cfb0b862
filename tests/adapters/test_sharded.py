"""LoRS under FSDP2 in one process, on a CPU and on a GPU where there is one: the gradients are those without it."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from lors_cli.adapters import METHODS
from lors_cli.adapters.replace import replace_linears
from tests.kernels.interpreter import needs_gpu


def gradients(device: str, x: torch.Tensor, *, sharded: bool) -> list[torch.Tensor]:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(256, 96, bias=False, device=device, dtype=torch.bfloat16))
    with torch.no_grad():
        model[0].weight[:, ::2] = 0
    replace_linears(model, ["0"], METHODS["lors"].adapter, rank=16, alpha=16)
    nn.init.normal_(model[0].lora_B, std=0.01)
    if sharded:
        fully_shard(model, mesh=init_device_mesh(device, (1,)))
    model(x).float().square().mean().backward()
    computed = [model[0].lora_A.grad, model[0].lora_B.grad]
    return [gradient.full_tensor() for gradient in computed] if sharded else computed


@pytest.mark.skipif(not dist.is_available(), reason="this build of PyTorch has no torch.distributed")
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])
def test_one_sharded_process_has_the_gradients_of_none(device: str, tmp_path: Path) -> None:
    x = torch.randn(32, 256, dtype=torch.bfloat16).to(device)
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        sharded = gradients(device, x, sharded=True)
    finally:
        dist.destroy_process_group()
    for of_sharded, of_whole in zip(sharded, gradients(device, x, sharded=False), strict=True):
        torch.testing.assert_close(of_sharded, of_whole)
