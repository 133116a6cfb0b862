"""Which model an adapter was made on: the digests of each of its tensors and of each mask, from memory or from files.

A tensor counts with its name, its dtype and its values, so a model with another mask, with other weights, or rounded to
a smaller dtype is another one; tokenizer, configs and the split into files may change. The digests are kept in the
adapter's own file. PEFT's adapters, and those of older versions, only name their model.
"""

import hashlib
import logging
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import try_to_load_from_cache
from torch import Tensor, nn
from transformers import PreTrainedModel

from lors_cli.adapters import ON_DISK
from lors_cli.adapters.attached import plain_name, unwrapped, whole
from lors_cli.adapters.base import Adapter
from lors_cli.adapters.packed_linear import PackedLinear
from lors_cli.artifacts import model_files
from lors_cli.artifacts.adapter_file import AdapterFile
from lors_cli.artifacts.peft_options import BASE_LAYER
from lors_cli.artifacts.tensors import DTYPE_NAMES, DTYPES
from lors_cli.models import load
from lors_cli.models.weights import open_weights

log = logging.getLogger(__name__)


class Digests(NamedTuple):
    """Of one tensor: its dtype as safetensors names it, the SHA-256 of its shape and bytes, and of a matrix's mask."""

    dtype: str
    values: str
    mask: str | None


Named = Iterable[tuple[str, Tensor]]


def of(named: Named) -> dict[str, Digests]:
    """The digests of tensors by their names."""
    return {name: _digests(tensor) for name, tensor in named}


def in_memory(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a model under the names that they have without adapters, of tied ones the first.

    Adapters, packing, wrappers (DDP, torch.compile) and sharding (FSDP2: all processes must call it) change nothing.
    """
    core, seen = unwrapped(model), set()
    modules = dict(core.named_modules(remove_duplicate=False))
    for name, tensor in core.state_dict(keep_vars=True).items():
        parent, _, last = name.rpartition(".")
        module, (place, _, own) = modules[parent], parent.rpartition(".")
        if isinstance(module, Adapter) or id(tensor) in seen:
            continue
        if isinstance(module, PackedLinear):
            if last not in ("weight", "bias"):
                continue  # the packed weight is of several tensors
            # of codes the numbers in the dtype of their scales, which the files have, whatever it is computed in
            stored_as = None if module.scale is None else module.scale.dtype
            tensor = module.dense_weight(stored_as) if last == "weight" else tensor
        else:
            seen.add(id(tensor))
        adapted = own == "linear" and isinstance(modules[place], Adapter)
        adapted |= own == BASE_LAYER and hasattr(modules[place], "adapters")  # in PEFT's model
        yield plain_name(f"{place}.{last}" if adapted else name), whole(tensor)


def in_files(directory: Path, skeleton: PreTrainedModel, key: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors of `skeleton` in the files of `directory`, one in memory at a time; `key` is the config's path to it.

    Raises:
        RequestError: a file is missing or damaged, or lacks a tensor.

    """
    checkpoint = open_weights(directory, skeleton, key)
    return ((name, checkpoint.tensor(name)) for name in load.layout(skeleton))


def difference(recorded: dict[str, Digests], found: Named) -> str | None:
    """In words, how the tensors differ from the recorded ones; None if they are the same.

    They are compared in the recorded dtype: an adapter may be trained in bfloat16 on a model that is stored in float32,
    or the other way round.
    """
    left = dict(recorded)
    for name, tensor in found:
        if name not in left:
            return f"has a tensor {name} that it did not have"
        expected = left.pop(name)
        dtype = DTYPES[expected.dtype]
        got = _digests(tensor.to(dtype))
        if got.mask != expected.mask:
            return f"has another mask in {name}"
        if got != expected:
            stored = "" if tensor.dtype == dtype else f" ({DTYPE_NAMES[tensor.dtype]}, and it was {expected.dtype})"
            return f"has other values in {name}{stored}"
    return f"has no tensor {min(left)}" if left else None


def why_other(content: AdapterFile, names: Collection[str | Path], tensors: Callable[[], Named]) -> str | None:
    """In words, why an adapter was made on another model than this one; None if it was made on this one.

    With digests they decide. With a name alone, it has to be one of this model's, or that of a directory with the same
    tensors; the weights in a directory have to be older than the adapter, for they may have been replaced. A LoRA
    adapter without either is taken at its word, which is logged.

    Args:
        content: of the adapter.
        names: of this model: its directory, its id on the hub.
        tensors: gives those of this model.

    Raises:
        RequestError: the directory that the adapter names is not one of a model.
        LorsError: a file of it is damaged.

    """
    if content.made_on:
        return difference({name: Digests(*digests) for name, digests in content.made_on.items()}, tensors())
    if not content.model:
        if ON_DISK[content.method].peft_type != "LORA":
            return "may be another: nothing is recorded of the one that the adapter was made on"
        log.warning("the adapter does not say on which model it was made; it is taken for this one")
        return None
    place = _place(content.model)
    if place and Path(content.model).expanduser().is_dir() and _written(place) > content.written:
        return f"may be another: the weights in {content.model} were written after the adapter"
    usual = content.config.get("revision") in (None, "main")  # the one that a name alone means
    if (usual and content.model in names) or (place and place.resolve() in [Path(name).resolve() for name in names]):
        return None
    if place is None:
        return f"may be another than {content.model}, which is not here to be compared"
    there = of(in_files(place, load.skeleton(place, quantized=True), "base_model_name_or_path"))
    differs = difference(there, tensors())
    return f"{differs}, unlike {content.model}" if differs else None


def why_other_in_memory(content: AdapterFile, model: nn.Module) -> str | None:
    """The same for a model in memory, which may have been changed since it was loaded; errors as there.

    Where it is in a smaller dtype than the one that the adapter was made on, the directory that it is from has to tell.
    """
    name = unwrapped(model).config._name_or_path
    directory = _place(name)
    if directory is None:
        return why_other(content, [name] if name else [], lambda: in_memory(model))
    differs = why_other(content, [], lambda: in_memory(model))
    if differs is None:
        return None
    skeleton = load.skeleton(directory, quantized=True)
    if why_other(content, [directory, name], lambda: in_files(directory, skeleton, "model")):
        return differs
    return difference(of(in_memory(model)), in_files(directory, skeleton, "model"))


def _place(name: str) -> Path | None:
    """The directory of a model that a config names, by its path or by its id on the hub; None if it is not here."""
    directory = Path(name).expanduser()
    if name and not directory.is_dir():
        with suppress(ValueError):  # not a name that the hub could have
            cached = try_to_load_from_cache(name, "config.json")
            directory = Path(cached).parent if isinstance(cached, str) else directory
    there = (directory / "config.json").is_file() and model_files.has_weights(directory)
    return directory if name and there else None


def _written(directory: Path) -> float:
    return max(path.stat().st_mtime for path in model_files.weight_files(directory))


def _digests(tensor: Tensor) -> Digests:
    tensor = tensor.detach().cpu().contiguous()
    matrix = tensor.dim() == 2 and tensor.is_floating_point()
    return Digests(DTYPE_NAMES[tensor.dtype], _sha256(tensor), _sha256(tensor != 0) if matrix else None)


def _sha256(tensor: Tensor) -> str:
    digest = hashlib.sha256(str(list(tensor.shape)).encode())
    content: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    digest.update(content)
    return digest.hexdigest()
