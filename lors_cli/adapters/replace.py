"""Putting adapters into a model: the named linears are replaced, everything else is frozen."""

from typing import Any

from torch import nn

from lors_cli.adapters.base import Adapter
from lors_cli.adapters.packed_linear import PackedLinear


def replace_linears(
    model: nn.Module, names: list[str], adapter: type[Adapter], *, packed: bool = False, **options: Any
) -> dict[str, Adapter]:
    """Replace each linear of `names` in `model` by an `adapter` around it.

    Args:
        model: its linears give their weights up one by one, so that packing needs little memory more.
        names: of linears in it.
        adapter: a formulation of a method.
        packed: keep the weights without their zeros; for adapters that have the option "base".
        options: of the adapter: rank, alpha, ...

    Returns:
        the adapters by the names of their linears; only their own tensors are trainable.

    """
    model.requires_grad_(False)
    attached = {}
    for name in names:
        linear = model.get_submodule(name)
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"{name} is a {type(linear).__name__}, not a linear")
        if packed and "base" not in adapter.options:
            raise ValueError(f"an adapter that multiplies with packed weights, got {adapter.__name__}")
        attached[name] = adapter(PackedLinear(linear) if packed else linear, **options)  # type: ignore[arg-type]
        model.set_submodule(name, attached[name])
    return attached
