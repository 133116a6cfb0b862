"""Putting adapters into a model: the named linears are replaced, everything else is frozen."""

from collections.abc import Collection
from typing import Any

from torch import nn

from lors_cli.adapters.base import Adapter
from lors_cli.adapters.int4_linear import Int4Linear
from lors_cli.adapters.nf4_linear import nf4_linear
from lors_cli.adapters.packed_linear import PackedLinear

BASES: dict[str, Any] = {"packed": PackedLinear, "nf4": nf4_linear}


def replace_linears(
    model: nn.Module,
    names: list[str],
    adapter: type[Adapter],
    *,
    base: str = "dense",
    dense: Collection[str] = (),
    **options: Any,
) -> dict[str, Adapter]:
    """Replace each linear of `names` in `model` by an `adapter` around it.

    Args:
        model: its linears give their weights up one by one, so that packing needs little memory more.
        names: of linears in it.
        adapter: a formulation of a method.
        base: the form of the frozen weights, one of the adapter's `bases`: as they are ("dense"), without their zeros
            ("packed"), in 4 bits ("nf4"), or as codes ("int4"), which those of `model` are already that have some.
        dense: those that stay as they are, whatever the base.
        options: of the adapter: rank, alpha, ...

    Returns:
        the adapters by the names of their linears; only their own tensors are trainable.

    """
    model.requires_grad_(False)
    attached = {}
    for name in names:
        linear: Any = model.get_submodule(name)
        if not isinstance(linear, (nn.Linear, Int4Linear)):
            raise TypeError(f"{name} is a {type(linear).__name__}, not a linear")
        if base not in adapter.bases:
            raise ValueError(f"an adapter that multiplies with {base} weights, got {adapter.__name__}")
        as_it_is = base in ("dense", "int4") or name in dense
        frozen: Any = linear if as_it_is else BASES[base](linear)
        attached[name] = adapter(frozen, **options)
        model.set_submodule(name, attached[name])
    return attached
