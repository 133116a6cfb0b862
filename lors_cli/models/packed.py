"""Models that run packed: linears of the blocks keep their weights, or codes, without zeros, as `PackedLinear`."""

import logging
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel

from lors_cli.adapters.dense_linear import DenseLinear
from lors_cli.adapters.packed_linear import PackedLinear
from lors_cli.artifacts import inputs
from lors_cli.errors import LorsError
from lors_cli.kernels import huge_pages
from lors_cli.models import codes, linears, load
from lors_cli.models.weights import Weights, open_weights
from lors_cli.quantization import packed as packed_codes
from lors_cli.sparsity import packed
from lors_cli.sparsity.packed import Stored

log = logging.getLogger(__name__)

NOT_SAVED = "a packed model is not saved: copy the directory that it was loaded from, or use lors pack and lors unpack"


@inputs.reads_model(weights=True)
def load_packed(
    directory: Path, dtype: str, device: torch.device, *, trust_remote_code: bool = False
) -> PreTrainedModel:
    """The model of `directory` with the linears of its blocks packed, in eval mode, frozen; it runs and nothing else.

    What `lors pack` made is read as it is stored, one weight at a time; any other model is packed on loading. Quantised
    weights keep their codes. Another weight with so few zeros that packing would make it larger stays dense, and so do
    embeddings and the head.

    Args:
        directory: a model directory, packed or not.
        dtype: "auto" (as stored) or a key of `load.DTYPES`.
        device: where to put it.
        trust_remote_code: whether code that the directory brings may run.

    Raises:
        RequestError: it is not a model that transformers can build; or as in `open_weights`.
        LorsError: a packed file is damaged.

    """
    model = load.skeleton(directory, dtype, trust_remote_code=trust_remote_code, quantized=True)
    weights = open_weights(directory, model, "model")
    every: dict[str, nn.Linear] = linears.all_linears(model)
    kinds: Counter[str] = Counter()
    before, after, denser = 0, 0, ""
    for name, linear in every.items():
        stored = _stored(weights, name, linear)
        kinds[stored.layout if stored.scale is None else f"{stored.layout} codes"] += 1
        before, after = before + linear.weight.nbytes, after + stored.bytes
        if stored.layout == "dense" and stored.scale is None:
            denser = denser or name
            _speed_up(model, name)
        else:
            model.set_submodule(name, PackedLinear(linear, stored=stored))
    if denser:
        few = packed.smallest_sparsity(model.dtype)
        reason = f"with {few:.0%} of zeros or fewer they would be larger packed"
        if type(every[denser]) is not nn.Linear:
            reason = f"a {type(every[denser]).__name__} may do more than multiply"
        log.warning(
            "%s: %d of %d linears stay dense, such as %s: %s", directory, kinds["dense"], len(every), denser, reason
        )
    speed_up_head(model)
    _fill(model, weights)
    if (directory / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(directory)
    model.save_pretrained = _not_saved
    shown = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    log.info("%s: linears of %.3f GB take %.3f GB (%s)", directory, before / 1e9, after / 1e9, shown)
    return model.requires_grad_(False).to(device)


def speed_up_head(model: PreTrainedModel) -> None:
    """Let the head of a model multiply as `DenseLinear` does, in place: of a small model it is a large part."""
    head = model.get_output_embeddings()
    for name in [name for name, module in model.named_modules() if module is head]:
        _speed_up(model, name)


def _speed_up(model: nn.Module, name: str) -> None:
    linear = model.get_submodule(name)
    if type(linear) is nn.Linear:  # another may do more than multiply
        model.set_submodule(name, DenseLinear(linear))


def _stored(weights: Weights, name: str, linear: nn.Linear) -> Stored:
    """The weight of the linear `name` in the dtype of the model, in the form that is the smaller one."""
    dtype = linear.weight.dtype
    if type(linear) is not nn.Linear:
        return Stored(linear.weight)  # it may do more than multiply
    if quantized := codes.of_linear(weights, name):
        coded = packed_codes.pack(quantized)
        return coded._replace(scale=quantized.scale.to(dtype))
    if stored := weights.stored(f"{name}.weight"):
        return stored._replace(values=stored.values.to(dtype))
    weight = weights.tensor(f"{name}.weight").to(dtype)
    return packed.pack(weight) if packed.packed_bytes(weight) < weight.nbytes else Stored(weight)


def _fill(model: PreTrainedModel, weights: Weights) -> None:
    """Give the model what is not packed."""
    inside = {name for name, module in model.named_modules() if isinstance(module, PackedLinear)}
    content = {
        name: huge_pages.placed(weights.tensor(name).to(like.dtype))
        for name, like in load.layout(model).items()
        if name.rpartition(".")[0] not in inside or name.endswith(".bias")
    }
    model.load_state_dict(content, strict=False, assign=True)
    model.tie_weights()
    if left := [name for name, parameter in model.named_parameters() if parameter.is_meta]:
        raise LorsError(f"{weights.files.path} lacks {len(left)} tensors, among them {left[0]}")


def _not_saved(*_: Any, **__: Any) -> NoReturn:
    raise ValueError(NOT_SAVED)
