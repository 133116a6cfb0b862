"""A model with adapters that keep the zeros, as PEFT has one for each of its methods."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTuner, _maybe_include_all_linear_layers
from torch import Tensor, nn

from lors_cli.adapters import fit
from lors_cli.adapters.attached import Settings
from lors_cli.artifacts import adapter_file, peft_options
from lors_cli.errors import as_value_error
from lors_cli.models import identity, targets
from lors_cli.peft.config import Config
from lors_cli.peft.layer import MaskedLinear


class MaskedModel(BaseTuner):  # type: ignore[misc]
    """A model with adapters that keep the zeros, as PEFT has one for each of its methods."""

    tuner_layer_cls = MaskedLinear
    target_module_mapping: dict[str, list[str]] = {}

    def __init__(self, model: nn.Module, peft_config: Any, *args: Any, **kwargs: Any) -> None:
        if isinstance(peft_config, PeftConfig):  # PeftModel has a dictionary; transformers would load only LoRA's names
            remedy = "use get_peft_model, or PeftModel.from_pretrained to load one"
            raise ValueError(f"{peft_config.method} adapters live in a PeftModel, not in the model itself: {remedy}")
        if isinstance(model, PeftModel):  # PEFT would wrap it once more, adapters on adapters
            remedy = "use its add_adapter(NAME, config), or its merge_and_unload() or unload() first"
            raise ValueError(f"get_peft_model: a model without adapters, got a PeftModel: {remedy}")
        super().__init__(model, peft_config, *args, **kwargs)

    def _layers(self) -> dict[str, MaskedLinear]:
        return {name: module for name, module in self.model.named_modules() if isinstance(module, MaskedLinear)}

    def _prepare_adapter_config(self, peft_config: Config, model_config: dict[str, Any]) -> Config:
        """Name the linears that have zeros if none are named."""
        if peft_config.target_modules is None:
            with as_value_error():
                names = targets.of_model(self.model, peft_config.way.adapter, peft_config.r, None, packed=False)
            peft_config.target_modules = {name.removesuffix(f".{peft_options.BASE_LAYER}") for name in names}
        return peft_config

    def _prepare_model(self, peft_config: Config, model: nn.Module) -> None:
        """Check every linear, and where their zeros are, before one is replaced."""
        config: Any = _maybe_include_all_linear_layers(peft_config, model)
        inside = tuple(f"{name}." for name in self._layers())
        weights: dict[str, Tensor] = {}
        for name, module in model.named_modules():
            if name and not name.startswith(inside) and self._check_target_module_exists(config, name):
                _check_linear(name, module, config)
                weights[name] = getattr(module, "base_layer", module).weight
        if any(weight.is_meta for weight in weights.values()):
            return
        zeros = _digest_of_zeros(weights)
        if peft_config._zeros_in_file not in (None, zeros):
            raise ValueError("the adapter was made on another model: the zeros of this one are elsewhere, or not there")
        peft_config.zeros = zeros

    def _create_and_replace(
        self, peft_config: Config, adapter_name: str, target: Any, target_name: str, parent: nn.Module, current_key: str
    ) -> None:
        _check_linear(current_key, target, peft_config)
        layer = target if isinstance(target, MaskedLinear) else MaskedLinear(target)
        layer.add(adapter_name, peft_config)
        if adapter_name not in self.active_adapters:
            layer.adapters[adapter_name].requires_grad_(False)
        if layer is not target:
            self._replace_module(parent, target_name, layer, target)

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Make one of the adapters the active one; errors as of `MaskedLinear.set_adapter`."""
        super().set_adapter(adapter_name, inference_mode=inference_mode)
        self._settle()

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter."""
        super().delete_adapter(adapter_name)
        self._settle()

    def _settle(self) -> None:
        """Let `lors_cli.api` find the active adapter."""
        self.model.__dict__.pop("lors_settings", None)
        for name in self.active_adapters:
            config = self.peft_config[name]
            Settings(config.method, config.r, config.lora_alpha, config.lora_dropout, active=name).keep_in(self.model)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        for name in ("adapter_names", "alora_offsets"):
            if kwargs.get(name) is not None:
                raise ValueError(f"{name}: all rows of a batch have one adapter, the active one (set_adapter)")
        yield

    def _check_merge_allowed(self) -> None:
        users = Counter(id(p) for _, p in self.model.named_parameters(remove_duplicate=False))
        for name, layer in self._layers().items():
            if users[id(layer.base_layer.weight)] > 1:
                raise ValueError(
                    f"{name} shares its weight, which merging would change too; save it and `lors merge` it"
                )

    def _prove(self, adapter_names: list[str] | None) -> None:
        """Raise what merging would, before the first linear is changed."""
        self._check_merge_allowed()
        for layer in self._layers().values():
            if name := None if layer.merged and adapter_names is None else layer.to_merge(adapter_names):
                layer.merged_weight(name)

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Merge all linears or none; errors as of `MaskedLinear.merge`."""
        self._prove(adapter_names)
        super().merge_adapter(adapter_names=adapter_names, safe_merge=safe_merge)

    def _unload_and_optionally_merge(self, merge: bool = True, **options: Any) -> Any:
        if merge:
            self._prove(options.get("adapter_names"))
        else:
            self.unmerge_adapter()
        model = super()._unload_and_optionally_merge(merge=merge, **options)
        model.__dict__.pop("lors_settings", None)
        return model

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        linear, found, name = key.rpartition(f".adapters.{adapter_name}.")
        return f"{linear}.{name}.weight" if found else key

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: Config, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Refuse what does not fit the adapters, or was made on another model, before it is loaded."""
        copies = _copies_of_frozen(model, state_dict)
        state_dict = {key: tensor for key, tensor in state_dict.items() if key not in copies}
        loaded: dict[str, Tensor] = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        own = {key: one.shape for key, one in model.state_dict().items() if f".adapters.{adapter_name}." in key}
        if foreign := sorted(loaded.keys() - own.keys()):
            raise ValueError(f"a file with adapters alone, got a tensor {foreign[0]}, which the model has no place for")
        for key, shape in own.items():
            if key not in loaded or loaded[key].shape != shape:
                got = f"one of {tuple(loaded[key].shape)}" if key in loaded else "none"
                raise ValueError(
                    f"a tensor {cls._remove_adapter_name_from_key(key, adapter_name)} of {tuple(shape)}, got {got}"
                )
        directory, config._read_from = config._read_from, None
        if directory and not copies:  # those are PEFT's files, which have no digests
            with as_value_error():
                content = adapter_file.load(directory, "directory")
                why = identity.why_other_in_memory(content, model) if content.made_on else None
            if why:
                raise ValueError(f"{directory} was made on another model: this one {why}")
        return loaded


def _copies_of_frozen(model: nn.Module, state_dict: dict[str, Tensor]) -> set[str]:
    """The weights of frozen linears that PEFT saves beside their adapters, such as the head's, if it is adapted.

    Raises:
        ValueError: the model has another one.

    """
    copies, own = {key for key in state_dict if key.endswith(f".{peft_options.BASE_LAYER}.weight")}, model.state_dict()
    for key in sorted(copies):
        if key not in own or not torch.equal(own[key].cpu(), state_dict[key].to("cpu", own[key].dtype)):
            raise ValueError(f"the adapter was made on another model: its file has another {key} than this one")
    return copies


def _digest_of_zeros(weights: dict[str, Tensor]) -> str:
    """The SHA-256 of where the weights, by name, have zeros: what an adapter learns under."""
    told = hashlib.sha256()
    for name in sorted(weights):
        told.update(name.encode())
        told.update(np.packbits((weights[name].detach() == 0).cpu().numpy()).tobytes())
    return told.hexdigest()


def _check_linear(name: str, module: Any, config: Config) -> None:
    """Refuse what an adapter cannot multiply with.

    Raises:
        ValueError: it is not a linear with float weights, or it is too small for the rank.

    """
    linear = module.base_layer if isinstance(module, MaskedLinear) else module
    plain = isinstance(linear, nn.Linear) and type(linear).forward is nn.Linear.forward
    if not plain or not linear.weight.is_floating_point():
        raise ValueError(f"target_modules: linears (nn.Linear) with floats, got {name}, a {type(linear).__name__}")
    if reason := fit.misfit(config.way.adapter, config.r, (linear.out_features, linear.in_features)):
        raise ValueError(f"r={config.r}: {reason} of {name}")
