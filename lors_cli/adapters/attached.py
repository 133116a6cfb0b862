"""The adapters in a model, also in one that DDP, torch.compile or FSDP2 has wrapped or sharded since."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lors_cli import adapters
from lors_cli.adapters.base import Adapter

_SETTINGS = "lors_settings"  # where a model with adapters keeps them
_WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module")  # of torch.compile and of checkpointing, in modules' names


@dataclass(frozen=True)
class Settings:
    """What all adapters of one model share and their tensors do not tell."""

    method: str
    rank: int
    alpha: float
    dropout: float

    def keep_in(self, model: nn.Module) -> None:
        """Let `of` find them."""
        setattr(model, _SETTINGS, self)

    @staticmethod
    def of(model: nn.Module) -> "Settings | None":
        """Those of a model without its wrappers; None where no adapters are attached."""
        return getattr(model, _SETTINGS, None)


def unwrapped(model: Any) -> Any:
    """The transformers model inside of DDP, torch.compile and the like."""
    while (inner := model._modules.get("_orig_mod", model._modules.get("module"))) is not None:
        model = inner
    return model


def find(model: nn.Module) -> tuple[Any, Settings, dict[str, Adapter]]:
    """The model without its wrappers, its settings, and its adapters by the names of their linears.

    Raises:
        ValueError: there are none.

    """
    core = unwrapped(model)
    settings = Settings.of(core)
    if settings is None:
        raise ValueError("a model with adapters, got one without: call lors_cli.api.attach first")
    found = {name: module for name, module in core.named_modules() if isinstance(module, Adapter)}
    plain = {".".join(p for p in name.split(".") if p not in _WRAPPERS): adapter for name, adapter in found.items()}
    return core, settings, plain


def misfits(
    method: str, rank: int, tensors: Mapping[str, Mapping[str, Tensor]], modules: Mapping[str, Any]
) -> list[str]:
    """Which `tensors`, by module and name, do not fit the linears or adapters `modules`, in words."""
    found = []
    for name, named in tensors.items():
        if name not in modules:
            found.append(f"there is no linear {name}")
            continue
        linear = modules[name].linear if isinstance(modules[name], Adapter) else modules[name]
        size = (linear.out_features, linear.in_features)
        try:
            wanted: Any = adapters.METHODS[method].adapter.shapes(*size, rank)
        except ValueError as error:
            wanted = error
        got = {key: tuple(tensor.shape) for key, tensor in named.items()}
        if got != wanted:
            found.append(f"{name} {size} needs {wanted}, got {got}")
    return found


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor of which this process may hold only a part (a DTensor)."""
    gather: Callable[[], Tensor] | None = getattr(tensor, "full_tensor", None)
    return (gather() if gather else tensor).detach()
