"""Which options of PEFT's adapter configs are understood: what was proved against PEFT's own merge, and nothing else.

An option is understood if it is off (null, false, empty), if it cannot change what the saved tensors mean, or if its
value is in `VERIFIED`. Any other one is refused by name, also one that a later PEFT will bring.
"""

import math
import re
from collections.abc import Callable, Sized
from typing import Any

from lors_cli.adapters import Method
from lors_cli.errors import request_error

# They say where the adapter comes from or what it was trained with; which linears it has is said by its tensors.
DESCRIPTIVE = {
    *("peft_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode"),
    *("r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("eva_config", "megatron_core", "qalora_group_size"),  # parts of an option that is off, or has been carried out
    *("rank_pattern", "alpha_pattern"),  # see `scaling`
    "modules_to_save",  # see `saves`
    *("formulation", "adapter_checkpointing"),  # how our methods compute in PEFT, not what
    "zeros",  # of the model, which PEFT compares when it loads our methods
}
COPY = "copy the adapter again"
OWN_BIASES = "lora_only"  # the value of "bias" that means those of the adapted linears
ON_GRID = "quantization_aware"  # a key of ours: without the rounding such an adapter makes another model
BASE_LAYER = "base_layer"  # the adapted linear in PEFT's module
MERGE_WITH_PEFT = "merge it with PEFT (merge_and_unload, which keeps no zeros) and name that model"
# Values that PEFT merges as W + scale B A; tests/artifacts/test_peft_options.py compares each.
VERIFIED: dict[str, tuple[Any, ...]] = {
    "task_type": ("CAUSAL_LM",),
    "bias": ("none", OWN_BIASES),
    "init_lora_weights": (True, "gaussian", "orthogonal", "eva", "mica"),  # the others change the model's own weights
    "use_rslora": (True,),
}


def _is_fraction(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _are_names(value: Any) -> bool:
    """Whether it is a regular expression, or a list of names."""
    try:
        return all(isinstance(one, str) for one in value) if isinstance(value, list) else bool(re.compile(value))
    except (re.error, TypeError):
        return False


def _are_numbers(value: Any) -> bool:
    return all(type(one) is int for one in _each(value))


# What the descriptive options that are read have to hold, if anything.
TYPES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "peft_type": ("a text", lambda value: isinstance(value, str)),
    "base_model_name_or_path": ("a text", lambda value: isinstance(value, str)),
    "lora_dropout": ("a number from 0 to 1", _is_fraction),
    "target_modules": ("a regular expression or a list of names", _are_names),
    "exclude_modules": ("a regular expression or a list of names", _are_names),
    "layers_pattern": ("a regular expression or a list of names", _are_names),
    "layers_to_transform": ("a number or a list of numbers", _are_numbers),
    "modules_to_save": ("a list of names", lambda value: isinstance(value, list) and _are_names(value)),
}


def check_types(config: dict[str, Any], key: str, file: object) -> None:
    """Refuse a config in which an option that is read holds something else than it should.

    Raises:
        RequestError: it has one.

    """
    for option, (expected, holds) in TYPES.items():
        value = config.get(option)
        if value is not None and not holds(value):
            raise request_error(f"{key}: {option}", expected, repr(value), COPY, file)


def is_off(value: Any) -> bool:
    """Whether an option with this value asks for nothing; a number does, such as 0 for layers_to_transform."""
    return value is None or value is False or (isinstance(value, Sized) and not len(value))


def check(config: dict[str, Any], key: str, file: object) -> None:
    """Refuse a config with an option that is not understood; `key` is the config's path to the adapter.

    Raises:
        RequestError: it has one.

    """
    for option, value in config.items():
        if is_off(value) or option in (*DESCRIPTIVE, ON_GRID) or value in VERIFIED.get(option, ()):
            continue
        known = " or ".join(map(repr, VERIFIED.get(option, ()))) or "left out"
        without = "train it without"
        if option == "init_lora_weights":  # PEFT's conversion keeps the model as it was before training
            without = (
                "save it with PEFT's path_initial_model_for_weight_conversion, which makes it a plain LoRA adapter"
            )
        raise request_error(f"{key}: {option}", known, repr(value), f"{without}, or {MERGE_WITH_PEFT}", file)


def on_grid(config: dict[str, Any], method: Method, key: str, file: object) -> bool:
    """Whether effective weights are on the grid of a quantised model, which PEFT does not have.

    Raises:
        RequestError: the `method` of the adapter cannot do that, or the config holds something else than a truth value.

    """
    value = config.get(ON_GRID, False)
    if value is True and ON_GRID in method.formulation().options.model_fields:
        return True
    if value is not False:
        raise request_error(f"{key}: {ON_GRID}", "false, or true for lors and sqft", repr(value), COPY, file)
    return False


def scaling(config: dict[str, Any], key: str, file: object, linear: str = "") -> tuple[int, float]:
    """The rank, and the alpha for which the update is scaled by alpha / rank; of one linear if it is named.

    The first pattern that matches the end of its name decides, as in PEFT's `get_pattern_key`.

    Raises:
        RequestError: they are not numbers, the rank is not positive, or a pattern is not one.

    """
    numbers: dict[str, Any] = {}
    for option, patterns in (("r", "rank_pattern"), ("lora_alpha", "alpha_pattern")):
        by_pattern: Any = config.get(patterns) or {}
        try:
            own = next((v for p, v in by_pattern.items() if re.match(rf"(.*\.)?({p})$", linear)), config.get(option))
        except (re.error, AttributeError) as error:
            raise request_error(f"{key}: {patterns}", "regular expressions", str(error), COPY, file) from None
        numbers[option] = own
    rank, alpha = numbers["r"], numbers["lora_alpha"]
    whole = isinstance(rank, int) and not isinstance(rank, bool) and rank > 0
    if not whole or isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        got = f"r {rank!r} and lora_alpha {alpha!r}" + (f" of {linear}" if linear else "")
        raise request_error(key, "a positive r and a finite lora_alpha", got, COPY, file)
    return rank, alpha * math.sqrt(rank) if config.get("use_rslora") else alpha


def targets(config: dict[str, Any], name: str) -> bool:
    """Whether PEFT would have adapted the linear `name`, by the rules of its `check_target_module_exists`."""

    def matched(patterns: Any) -> bool:
        if isinstance(patterns, str):
            return re.fullmatch(patterns, name) is not None
        return any(name == pattern or name.endswith(f".{pattern}") for pattern in patterns or ())

    wanted: Any = config.get("target_modules")
    layers = config.get("layers_to_transform")
    if not matched(wanted) or matched(config.get("exclude_modules")):
        return False
    if layers is None or layers == [] or isinstance(wanted, str) or name in wanted:
        return True
    patterns = config.get("layers_pattern") or "[^.]*"
    number = next(filter(None, (re.match(rf".*\.{pattern}\.(\d+)\.", name) for pattern in _each(patterns))), None)
    return number is not None and int(number[1]) in _each(layers)


def saves(config: dict[str, Any], name: str) -> bool:
    """Whether PEFT keeps a trained copy of the parameter `name`, by the rule of its `modules_to_save`."""
    endings = tuple(config.get("modules_to_save") or ())
    parts = name.split(".")
    return bool(endings) and any(".".join(parts[:depth]).endswith(endings) for depth in range(1, len(parts)))


def stored_name(name: str, *, of_linear: bool) -> str:
    """The name that PEFT gives a trained parameter of the model in its files; also of a bias of an adapted linear."""
    place, _, kind = name.rpartition(".")
    return f"{place}.{BASE_LAYER}.{kind}" if of_linear else name


def parameter(config: dict[str, Any], stored: str) -> str | None:
    """The parameter of the model whose trained values stand under the name `stored` in PEFT's files, if it is one."""
    place, _, kind = stored.rpartition(".")
    if config.get("bias") == OWN_BIASES and kind == "bias" and place.endswith(f".{BASE_LAYER}"):
        return f"{place.removesuffix(f'.{BASE_LAYER}')}.{kind}"
    return stored if saves(config, stored) else None


def _each(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
