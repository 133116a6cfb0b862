"""A sparse linear in float64 and its adapters, with every tensor nonzero so that no gradient vanishes by chance."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lors_cli.adapters import METHODS
from lors_cli.adapters.base import Adapter

R, C, N, RANK, ALPHA = 24, 16, 10, 4, 6.0
SCALE = ALPHA / RANK


def sparse_linear(*, bias: bool = False, dtype: torch.dtype = torch.float64) -> nn.Linear:
    linear = nn.Linear(C, R, bias=bias, dtype=dtype)
    linear.weight.data[torch.rand(R, C) < 0.5] = 0
    linear.weight.data[3] = 0
    return linear


def make(
    method: str, way: str | None = None, *, bias: bool = False, dtype: torch.dtype = torch.float64, **options: Any
) -> Adapter:
    torch.manual_seed(0)
    row = METHODS[method]
    adapter = row.formulation(way).adapter(sparse_linear(bias=bias, dtype=dtype), rank=RANK, alpha=ALPHA, **options)
    for parameter in adapter.tensors().values():
        parameter.data = torch.randn_like(parameter) * 0.3
    return adapter


def saved_for_backward(run: Callable[[], Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The output of `run` and the distinct tensors that autograd keeps for it."""
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = run()
    return output, list(saved.values())


def gradients(adapter: Adapter) -> dict[str, Tensor]:
    """The gradients of the trainable tensors, which are cleared."""
    grads = {}
    for name, parameter in adapter.tensors().items():
        assert parameter.grad is not None
        grads[name], parameter.grad = parameter.grad, None
    return grads
