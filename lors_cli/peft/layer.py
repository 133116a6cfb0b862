"""A linear with adapters as PEFT has it: several by name, active or not, merged or not."""

from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from lors_cli.peft.config import Config


class MaskedLinear(nn.Module, BaseTunerLayer):  # type: ignore[misc]
    """A frozen linear and its adapters by name, one of which is active.

    Merging keeps the weight that was there, so that unmerging gives back every bit.
    """

    adapter_layer_names = ("adapters",)

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.base_layer = linear
        self.adapters = nn.ModuleDict()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.merged_adapters: list[str] = []
        self._active_adapter: list[str] = []
        self._unmerged: Tensor | None = None

    def add(self, name: str, config: Config) -> None:
        """Give it another adapter, which does not own the linear: its parameters are those of the adapter alone."""
        options: dict[str, Any] = {
            "adapter_checkpointing": config.adapter_checkpointing,
            "dropout": config.lora_dropout,
        }
        adapter = config.way.adapter(self.base_layer, rank=config.r, alpha=config.lora_alpha, **options)
        del adapter._modules["linear"]
        adapter.__dict__["linear"] = self.base_layer
        self.adapters[name] = adapter

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """X (..., C) to Y (..., R)."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        active: Any = self.active_adapters
        name = next((name for name in active if name in self.adapters), None)
        chosen = self.base_layer if name is None or self.disable_adapters or self.merged else self.adapters[name]
        y: Tensor = chosen(x, *args, **kwargs)
        return y

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Make one of the adapters the active one.

        Raises:
            ValueError: several are named: their updates are not made for one mask together.

        """
        if not isinstance(adapter_names, str) and len(adapter_names) > 1:
            raise ValueError(f"one active adapter at a time, got {', '.join(adapter_names)}")
        super().set_adapter(adapter_names, inference_mode=inference_mode)

    def to_merge(self, adapter_names: list[str] | None) -> str | None:
        """The adapter of this linear among those named, the active one if none are; None if there is none.

        Raises:
            ValueError: several are asked for, one after the other or together.

        """
        asked = check_adapters_to_merge(self, adapter_names)
        names = [name for name in asked if name in self.adapters]
        if len({*names, *self.merged_adapters}) > 1:
            raise ValueError(f"one merged adapter at a time, got {', '.join([*self.merged_adapters, *names])}")
        return names[0] if names else None

    @torch.no_grad()
    def merged_weight(self, name: str) -> Tensor:
        """The effective weight (R, C) with that adapter, proved to keep every zero.

        Raises:
            ValueError: a number that is zero would not be so any more, or is not finite.

        """
        weight = self.base_layer.weight.data
        merged: Tensor = self.adapters[name].effective_weight(weight)  # type: ignore[operator]
        returned = int(((merged != 0) & (weight == 0)).sum())
        if not bool(merged.isfinite().all()):
            raise ValueError(f"the adapter {name} cannot be merged: its update is not finite; nothing was changed")
        if returned:
            raise ValueError(
                f"the adapter {name} cannot be merged: {returned} zeros would come back; nothing was changed"
            )
        return merged

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Put the effective weight in the linear; errors as of `to_merge` and `merged_weight`."""
        if name := self.to_merge(adapter_names):
            merged, self._unmerged = self.merged_weight(name), self.base_layer.weight.data
            self.base_layer.weight.data = merged
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Give the linear back the weight that it had."""
        if self._unmerged is not None:
            self.base_layer.weight.data, self._unmerged = self._unmerged.to(self.base_layer.weight), None
            self.merged_adapters.clear()

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """PEFT's also gives adapters the dtype of the weight, in which small updates vanish."""
        if adapter_name not in self.adapters:  # PEFT asks every layer, also of what this adapter leaves out
            return
        adapter = self.adapters[adapter_name]
        if not any(tensor.is_meta for tensor in adapter.parameters()):
            adapter.to(device or self.base_layer.weight.device)
