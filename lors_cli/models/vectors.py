"""Which vectors of a model can be trained beside its adapters, found by rule: those of its norms, and biases.

A norm is a module of the decoder without modules in it whose class is called so: LlamaRMSNorm, LayerNorm. All of its
parameters count: those in the blocks, of queries and keys too, and those of the last norm.
"""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from lors_cli.adapters.vectors import owner
from lors_cli.artifacts import peft_options
from lors_cli.artifacts.adapter_file import AdapterFile
from lors_cli.errors import request_error
from lors_cli.models.linears import decoder


def find(model: Any, kinds: Iterable[str], adapted: Iterable[str], key: str) -> dict[str, Tensor]:
    """The vectors of a (skeleton) model that a config asks for by their `kinds`, norms and biases, by their names.

    Args:
        model: its adapters may be attached.
        kinds: "norms", "biases".
        adapted: the names of the linears whose biases are meant.
        key: the config's path to the kinds.

    Raises:
        RequestError: the model has none of a kind, or what is called a norm has something else than vectors.

    """
    found: dict[str, Tensor] = {}
    for kind in kinds:
        vectors = norms(model) if kind == "norms" else biases(model, adapted)
        name = type(model).__name__
        if not vectors:
            what = "norms with weights" if kind == "norms" else "biases in the adapted linears"
            raise request_error(key, f"a model that has {what}", f"{name}, which has none", f"leave {kind} out of it")
        if other := next((one for one, tensor in vectors.items() if tensor.dim() != 1), None):
            got = f"{name}, whose {other} has the shape {tuple(vectors[other].shape)}"
            raise request_error(key, "norms that multiply with a vector", got, f"leave {kind} out of it")
        if shared := _shared(model, vectors):
            got = f"{name}, in which {shared} are one"
            raise request_error(key, "vectors of which each has one place", got, f"leave {kind} out of it")
        found |= vectors
    return found


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm: its class is called so, and it has no modules in it."""
    return "norm" in type(module).__name__.lower() and not any(True for _ in module.children())


def norms(model: Any) -> dict[str, Tensor]:
    """The parameters of the norms in the decoder of a (skeleton) model, by their names in the model."""
    inside = decoder(model)
    prefix = next(name for name, module in model.named_modules() if module is inside)
    return {
        f"{prefix}.{place}.{own}".lstrip("."): parameter
        for place, module in inside.named_modules()
        if is_norm(module)
        for own, parameter in module.named_parameters()
    }


def biases(model: nn.Module, adapted: Iterable[str]) -> dict[str, Tensor]:
    """The biases of the linears `adapted` of a (skeleton) model that have one, by their names in the model."""
    named = {f"{name}.bias": getattr(*owner(model, f"{name}.bias"), None) for name in adapted}
    return {name: bias for name, bias in named.items() if bias is not None}


def _shared(model: nn.Module, vectors: dict[str, Tensor]) -> str | None:
    """The names of a parameter that is in several places of a model, if one of the `vectors` is."""
    own = {id(tensor): [] for tensor in vectors.values()}  # type: dict[int, list[str]]
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in own:
            own[id(parameter)].append(name)
    return next((" and ".join(names) for names in own.values() if len(names) > 1), None)


def misfits(content: AdapterFile, model: Any) -> list[str]:
    """What an adapter's vectors have to do with a (skeleton) model that they do not fit, in words.

    Those of norms and of adapted linears are known, and nothing else of what the adapter's config says that it trained.
    """
    own = biases(model, [name for name in content.modules if _has(model, name)])
    fitting = {**norms(model), **own} if content.vectors else own
    problems = []
    for name, value in content.vectors.items():
        if name not in fitting:
            problems.append(f"{name} is neither of a norm nor the bias of an adapted linear")
        elif fitting[name].shape != value.shape:
            problems.append(f"{name} needs the shape {tuple(fitting[name].shape)}, got {tuple(value.shape)}")
    every = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    wanted = {name: "modules_to_save" for name in every if peft_options.saves(content.config, name)}
    wanted |= dict.fromkeys(own, "bias") if content.config.get("bias") == peft_options.OWN_BIASES else {}
    missing = {name: option for name, option in wanted.items() if name not in content.vectors}
    return problems + [f"it has nothing for {name}, which its {option} asks for" for name, option in missing.items()]


def _has(model: nn.Module, name: str) -> bool:
    try:
        model.get_submodule(name)
    except AttributeError:
        return False
    return True
