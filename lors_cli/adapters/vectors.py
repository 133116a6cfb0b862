"""Vectors of a model that are trained as they are, beside its adapters: weights and biases of norms, biases of linears.

A trained vector v is kept in float32 whatever the model's dtype, because small steps vanish in bf16; its module
computes with v rounded to the dtype that it had. That is what a merge writes, so the model that was trained, the one
that is evaluated and the merged one have the same numbers.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lors_cli.adapters.base import Adapter


class Trained(Protocol):
    """What has trainable tensors: an adapter, or a vector."""

    def tensors(self) -> Mapping[str, nn.Parameter]:
        """They by their names."""


class Vector:
    """A trained vector: the parameter `kind` of a module, which the module has from now on in its own dtype as before.

    Args:
        module: a norm or a linear; it gets another class, derived from its own, that has the vector as a property.
        kind: of its parameters, such as "weight".

    """

    def __init__(self, module: nn.Module, kind: str) -> None:
        self._module, self._kind = module, kind
        value: Tensor = getattr(module, kind).detach()
        # a copy also where the dtype stays, because what is trained must not be the tensor that was frozen
        full = value.to(torch.promote_types(value.dtype, torch.float32), copy=True)
        setattr(module, kind, nn.Parameter(full))
        parametrize.register_parametrization(module, kind, _Rounded(value.dtype), unsafe=True)  # it changes the dtype

    def tensors(self) -> dict[str, nn.Parameter]:
        """The vector in float32 as "value"; float64 stays, for exact tests."""
        parametrizations: Any = self._module.parametrizations
        return {"value": parametrizations[self._kind].original}


class _Rounded(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def forward(self, value: Tensor) -> Tensor:
        return value.to(self._dtype)


def train_vectors(model: nn.Module, names: Iterable[str]) -> dict[str, Vector]:
    """Let the parameters `names` of `model` be trained; call it once its adapters are attached, which freezes all."""
    return {name: Vector(*owner(model, name)) for name in names}


def owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that has the parameter `name` of a model, also inside of an adapter, and its name there."""
    place, _, kind = name.rpartition(".")
    module = model.get_submodule(place)
    return (module.linear if isinstance(module, Adapter) else module), kind
