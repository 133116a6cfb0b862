"""A model may write into what a linear returns, as Falcon does: the gradients are those of new tensors."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lors_cli.adapters import METHODS
from lors_cli.adapters.base import Adapter
from lors_cli.adapters.lors import LoRS
from lors_cli.adapters.packed_linear import PackedLinear
from lors_cli.adapters.sqft import SQFT

KINDS: dict[str, tuple[type[Adapter], dict[str, Any]]] = {
    **{row.adapter.__name__: (row.adapter, {}) for method in METHODS.values() for row in method.formulations.values()},
    "SQFT-gc": (SQFT, {"adapter_checkpointing": True}),
    "SQFT-gc-reentrant": (SQFT, {"adapter_checkpointing": "reentrant"}),
    "LoRS-packed": (LoRS, {}),
}


def forward(one: nn.Module, other: nn.Module, x: Tensor, way: str, *, in_place: bool) -> Tensor:
    y: Tensor = one(x)
    z: Tensor = other(x)
    if way == "add":
        return y.add_(z) if in_place else y + z
    if way == "relu":
        return (torch.relu_(y) if in_place else torch.relu(y)) + z
    if in_place:  # into a view of it
        y[..., :4].mul_(3)
        return y + z
    return torch.cat([y[..., :4] * 3, y[..., 4:]], -1) + z


@pytest.mark.parametrize("way", ["add", "relu", "view"])
@pytest.mark.parametrize("shape", [(2, 3, 16), (3, 16)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", list(KINDS))
def test_outputs_may_be_written_into(
    name: str, bias: bool, dtype: torch.dtype, shape: tuple[int, ...], way: str
) -> None:
    kind, options = KINDS[name]
    results = []
    for in_place in (False, True):
        torch.manual_seed(0)
        plain = [nn.Linear(16, 16, bias=bias, dtype=dtype) for _ in range(2)]
        adapters = [kind(PackedLinear(one) if "packed" in name else one, rank=4, alpha=4, **options) for one in plain]  # type: ignore[arg-type]
        tensors = [tensor for adapter in adapters for tensor in adapter.tensors().values()]
        for tensor in tensors:
            nn.init.normal_(tensor, std=0.3)
        x = torch.randn(shape, dtype=dtype, requires_grad=True)
        y = forward(adapters[0], adapters[1], x, way, in_place=in_place)
        y.float().square().sum().backward()
        results.append([y.detach(), x.grad, *(tensor.grad for tensor in tensors)])
    for one, other in zip(*results, strict=True):
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)
