"""The adapters in a model, also in one that DDP, torch.compile or FSDP2 has wrapped or sharded since."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lors_cli.adapters.base import Adapter
from lors_cli.adapters.lors import LoRS
from lors_cli.adapters.packed_linear import ONLY_RUNS, PackedLinear
from lors_cli.adapters.vectors import owner

_SETTINGS = "lors_settings"  # where a model with adapters keeps them
_WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module")  # what torch.compile and checkpointing add to modules' names


@dataclass(frozen=True)
class Settings:
    """What all adapters of a model share and what cannot be read from their tensors.

    `vectors` are the names of the model's parameters that have the values that were trained with the adapters.
    `quantization_aware`: effective weights are on the grid of the model, which is a quantised one.
    `active`: in a model of PEFT, which of the adapters of a linear this is about, by its name there.
    """

    method: str
    rank: int
    alpha: float
    dropout: float
    vectors: tuple[str, ...] = ()
    quantization_aware: bool = False
    active: str = ""

    def keep_in(self, model: nn.Module) -> None:
        """Let `of` find them."""
        setattr(model, _SETTINGS, self)

    @staticmethod
    def of(model: nn.Module) -> "Settings | None":
        """The settings of a model without its wrappers; None where no adapters are attached."""
        return getattr(model, _SETTINGS, None)


def unwrapped(model: Any) -> Any:
    """The transformers model inside of DDP, torch.compile, PEFT and the like."""
    while (inner := model._modules.get("_orig_mod", model._modules.get("module"))) is not None:
        model = inner
    return of_peft(model)


def of_peft(model: Any) -> Any:
    """The transformers model in a PeftModel with adapters; any other model as it is."""
    tuner = model._modules.get("base_model") if hasattr(type(model), "peft_config") else None
    return model if tuner is None else tuner._modules.get("model", model)


def find(model: nn.Module) -> tuple[Any, Settings, dict[str, Adapter]]:
    """The model without its wrappers, its settings, and its adapters by the names of their linears.

    Raises:
        ValueError: there are none.

    """
    core = unwrapped(model)
    settings = Settings.of(core)
    if settings is None:
        raise ValueError("a model with adapters, got one without: call lors_cli.api.attach first")
    if any(getattr(module, "merged_adapters", None) for module in core.modules()):
        raise ValueError("a model whose adapters are not merged: call unmerge_adapter first")
    place = f".adapters.{settings.active}" if settings.active else ""
    attached = {n: module for n, module in core.named_modules() if isinstance(module, Adapter) and n.endswith(place)}
    return core, settings, {plain_name(name.removesuffix(place)): adapter for name, adapter in attached.items()}


@torch.no_grad()
def place_vectors(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Give parameters of a model with adapters the values that were trained with these, rounded to its dtype."""
    for name, value in values.items():
        module, kind = owner(model, name)
        getattr(module, kind).copy_(value)
    if settings := Settings.of(model):
        replace(settings, vectors=tuple(values)).keep_in(model)


def plain_name(name: str) -> str:
    """The name of a module or a tensor without what wrappers have added to it."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor of which this process may hold only a part (a DTensor)."""
    gather: Callable[[], Tensor] | None = getattr(tensor, "full_tensor", None)
    return (gather() if gather else tensor).detach()


def round_anew(model: nn.Module, args: tuple[Any, ...]) -> None:
    """A forward pre-hook: another stochastic rounding in each forward of a training.

    The seeds are replaced, not changed: a backward that is still to come has saved the old ones.
    """
    if model.training:
        for adapter in model.modules():
            if isinstance(adapter, LoRS) and adapter.rounding_seed is not None:
                adapter.rounding_seed = adapter.rounding_seed + 1


def check_plain(model: Any) -> None:
    """Refuse what is not a transformers model with float weights, or is wrapped."""
    if unwrapped(model) is not model or not hasattr(model, "config") or hasattr(model, "peft_config"):
        raise ValueError(f"a plain transformers model, not wrapped yet, got {type(model).__name__}")
    if getattr(model.config, "quantization_config", None):
        raise ValueError("a model whose weights are plain floats, got a quantised one")
    if any(isinstance(module, PackedLinear) for module in model.modules()):
        raise ValueError(f"a model whose weights are dense; {ONLY_RUNS} (attach(packed=True) from Python)")
