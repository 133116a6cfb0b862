"""What other people's code needs of lors: models with adapters in a training loop that is not ours.

    load                   a model directory of any kind, also one that structured pruning made smaller
    attach                 linears become adapters, everything else is frozen
    start_from_gradient    lora_A from the first batches, as LoRS starts
    save_adapter           a directory in PEFT's form, which ``lors merge`` takes
    load_adapter           the way back

A wrong request is a ValueError here, not the RequestError of the command line.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lors_cli import adapters
from lors_cli.adapters import fit
from lors_cli.adapters.attached import Settings, find, place_vectors, round_anew, unwrapped, whole
from lors_cli.adapters.base import Adapter, Checkpointing, LowRankAdapter
from lors_cli.adapters.initialize import initialize_from_gradient
from lors_cli.adapters.replace import replace_linears
from lors_cli.artifacts import adapter_file
from lors_cli.errors import as_value_error, nearest
from lors_cli.models import identity, linears, targets, vectors
from lors_cli.models.load import load_model
from lors_cli.sparsity import mask

Model = TypeVar("Model", bound=nn.Module)


def load(
    directory: str | PathLike[str], *, dtype: str = "auto", device: str = "cpu", trust_remote_code: bool = False
) -> PreTrainedModel:
    """The model in `directory`, in eval mode; also a structured-pruned one, which plain transformers refuses.

    Args:
        directory: of a model, such as ``pruned`` or ``merged`` of a run.
        dtype: float32, bfloat16 or float16; auto: as the weights are stored.
        device: where to put it.
        trust_remote_code: whether code that the directory brings may run.

    Raises:
        ValueError: it is not a model directory that transformers can build.
        LorsError: a weight file is missing or damaged.

    """
    with as_value_error():
        return load_model(Path(directory), dtype, torch.device(device), trust_remote_code=trust_remote_code)


def attach(
    model: Model,
    *,
    method: str = "lors",
    rank: int = 16,
    alpha: float = 16.0,
    target_modules: list[str] | None = None,
    dropout: float = 0.0,
    formulation: str | None = None,
    packed: bool = False,
    adapter_checkpointing: Checkpointing = False,
    stochastic: bool = False,
) -> Model:
    """Replace linears of `model`, in place, by adapters; only the adapters' own tensors stay trainable.

    Call it before an optimiser is made and before anything wraps or shards the model.

    Args:
        model: a transformers causal language model.
        method: a key of `METHODS`.
        rank: of the update.
        alpha: the update is scaled by alpha / rank.
        target_modules: names, last parts of names or globs of linears in the decoder blocks; those with zeros if left
            out.
        dropout: lora, spp: probability of dropping an input of the update.
        formulation: how to compute the method; its first if left out.
        packed: lors: keep the frozen weights without their zeros.
        adapter_checkpointing: sqft, spp: recompute the method's own tensors in backward.
        stochastic: lors in bfloat16: round the effective weight stochastically, anew in each training forward.

    Returns:
        the same model.

    Raises:
        ValueError: the request does not fit the model or the method; the model is as it was.

    """
    way = _formulation(method, formulation)
    for argument, value, known in (
        ("dropout", dropout, "dropout" in way.options.model_fields),
        ("adapter_checkpointing", adapter_checkpointing, "adapter_checkpointing" in way.options.model_fields),
        ("stochastic", stochastic, "merge_rounding" in way.options.model_fields),
        ("packed", packed, "packed" in way.bases),
    ):
        if value and not known:
            raise ValueError(
                f"{argument}={value!r}: {method} ({way.class_name}) does not have this option; leave it out"
            )
    if rank < 1 or alpha <= 0 or not 0 <= dropout < 1:
        raise ValueError(
            f"expected rank >= 1, alpha > 0 and 0 <= dropout < 1, got rank={rank}, alpha={alpha}, dropout={dropout}"
        )
    names = _targets(model, way.adapter, rank, target_modules, packed=packed)
    options: dict[str, Any] = {"rank": rank, "alpha": alpha, "dropout": dropout}
    options |= {"adapter_checkpointing": adapter_checkpointing, **({"stochastic": True} if stochastic else {})}
    base = "packed" if packed else "dense"
    attached = replace_linears(model, names, way.adapter, base=base, **options)
    Settings(method, rank, alpha, dropout).keep_in(model)
    if stochastic:
        for adapter in attached.values():
            cast(Tensor, adapter.rounding_seed).random_(2**31)
        model.register_forward_pre_hook(round_anew)
    return model


def start_from_gradient(model: nn.Module, batches: Iterable[Mapping[str, Any]]) -> None:
    """Set every lora_A to the strongest directions of its weight's gradient over `batches`; lora_B becomes zero.

    The parameters stay the same objects, so an optimiser may exist already. Call it before the model is wrapped.

    Args:
        model: with low-rank adapters; its forward gives ``.loss``.
        batches: keyword arguments of its forward (input_ids, labels, attention_mask, ...); all are kept in memory.

    Raises:
        ValueError: no adapters are attached, their method is not low-rank, the model is wrapped, or there are no
            batches.
        LorsError: a gradient is zero or not finite; the adapters are as they were.

    """
    core, settings, named_adapters = find(model)
    if not adapters.METHODS[settings.method].low_rank:
        raise ValueError(f"{settings.method} is not a low-rank product: it has no lora_A to start")
    if core is not model:
        raise ValueError("a model that is not wrapped yet: DDP would not send one start to all processes any more")
    kept = list(batches)
    if not kept:
        raise ValueError("at least one batch to take the gradient from, got none")
    attached = cast(dict[str, LowRankAdapter], named_adapters)
    device = next(iter(attached.values())).linear.weight.device
    own = {name: adapter.tensors() for name, adapter in attached.items()}

    def backward() -> None:
        for batch in kept:
            inputs = {key: v.to(device) if isinstance(v, Tensor) else v for key, v in batch.items()}
            (core(**inputs).loss / len(kept)).backward()

    training = core.training
    core.train()
    try:
        initialize_from_gradient(attached, backward)
        with torch.no_grad():
            for name, adapter in attached.items():
                for key, started in adapter.tensors().items():
                    own[name][key].copy_(started)
    finally:
        core.train(training)
        for name, named in own.items():
            for key, parameter in named.items():
                setattr(attached[name], key, parameter)


def save_adapter(model: nn.Module, directory: str | PathLike[str]) -> None:
    """Write the adapters into `directory` as ``lors train`` does, whole or not at all.

    The digests of the model as it is now go with them: they are refused with any other model or mask. With several
    processes the first one writes. Where parameters are sharded (FSDP2), all of them must call it.

    Args:
        model: with adapters; it may be wrapped (DDP, accelerate, torch.compile).
        directory: a new one, or one that holds an older adapter and nothing else.

    Raises:
        ValueError: no adapters are attached, they came with trained norms, or the directory holds something else.
        LorsError: it cannot be written.

    """
    core, settings, attached = find(model)
    if settings.vectors:
        raise ValueError(
            f"adapters alone, got some with {settings.vectors[0]}, which only `lors train` trains and saves"
        )
    modules = {name: {key: whole(tensor) for key, tensor in a.tensors().items()} for name, a in attached.items()}
    kind = adapters.METHODS[settings.method].adapter
    sizes = {name: adapter.shape for name, adapter in attached.items()}
    if wrong := fit.misfits(kind, lambda _: settings.rank, modules, sizes):  # FSDP1 and ZeRO-3 leave pieces
        raise ValueError(f"adapters with all of their numbers; gather the parameters first: {wrong[0]}")
    tensors = identity.in_memory(model)  # of sharded ones each process has a part
    if torch.distributed.is_initialized() and torch.distributed.get_rank() > 0:
        deque(tensors, maxlen=0)
        return
    content = adapter_file.AdapterFile(settings.method, settings.rank, settings.alpha, modules, identity.of(tensors))
    with as_value_error():
        adapter_file.save_whole(Path(directory), content, base=core.config._name_or_path, dropout=settings.dropout)


def load_adapter(model: Model, directory: str | PathLike[str]) -> Model:
    """Give `model` the adapters in `directory`; they are attached first, in the default formulation, if there are none.

    Returns:
        the same model.

    Raises:
        ValueError: the directory holds no adapter, or one of another model or of other adapters, or `model` is sharded.
        LorsError: a file is damaged.

    """
    return place_adapter(model, directory, check=True)


def place_adapter(model: Model, directory: str | PathLike[str], *, check: bool = False) -> Model:
    """The same; without `check` for a caller who knows that the adapter was made on `model`."""
    path, core = Path(directory), unwrapped(model)
    settings = Settings.of(core)
    if settings is None:
        _check_plain(model)
    elif any(hasattr(parameter, "full_tensor") for parameter in core.parameters()):  # a DTensor
        raise ValueError("a model that is whole in this process; load the adapter before fully_shard")
    with as_value_error():
        content = adapter_file.load(path, "directory")
        dropout = adapter_file.read_dropout(path)
    method, rank, alpha = content.method, content.rank, content.alpha
    if method not in adapters.METHODS:
        raise ValueError(f"an adapter that can be trained; {path} is for `lors merge` alone: load the merged model")
    if settings and (method, rank, alpha) != (settings.method, settings.rank, settings.alpha):
        got = f"{(method, rank, alpha)} in {path}"
        raise ValueError(f"an adapter of the method, rank and alpha of {settings}, got {got}")
    if settings:
        sizes = {name: adapter.shape for name, adapter in find(model)[2].items()}
    else:
        sizes = linears.shapes(core, asked=content.modules)
    wrong = fit.misfits(adapters.METHODS[method].adapter, lambda _: rank, content.modules, sizes)
    own = sizes if settings else [name for name in sizes if content.lacks(name)]
    wrong += [f"it has nothing for {name}" for name in own if name not in content.modules]
    wrong += vectors.misfits(content, core)
    if wrong:
        more = f"; and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise ValueError(f"{path} does not fit this {type(core).__name__}: {'; '.join(wrong[:4])}{more}")
    with as_value_error():
        why = identity.why_other_in_memory(content, model) if check else None
    if why:
        raise ValueError(f"{path} was made on another model: this one {why}; load the model that it was made on")
    if settings is None:
        names = list(content.modules)
        attach(model, method=method, rank=rank, alpha=alpha, target_modules=names, dropout=dropout)
    place_vectors(core, content.vectors)
    with torch.no_grad():
        for name, adapter in find(model)[2].items():
            for key, parameter in adapter.tensors().items():
                parameter.copy_(content.modules[name][key])
    return model


def _formulation(method: str, formulation: str | None) -> adapters.Formulation:
    if method not in adapters.METHODS:
        raise ValueError(f"an adapter method, got {method!r}: {nearest(method, list(adapters.METHODS))}")
    ways = adapters.METHODS[method].formulations
    if formulation is not None and formulation not in ways:
        raise ValueError(f"a formulation of {method}, got {formulation!r}: {nearest(formulation, list(ways))}")
    return adapters.METHODS[method].formulation(formulation)


def _targets(
    model: Any, kind: type[Adapter], rank: int, target_modules: list[str] | None, *, packed: bool
) -> list[str]:
    """The names of the linears to adapt, each checked to be large enough for the rank and worth packing."""
    if Settings.of(unwrapped(model)):
        raise ValueError("a model without adapters, got one to which some are attached already")
    _check_plain(model)
    if isinstance(target_modules, str) or target_modules == []:
        raise ValueError(f"target_modules: a list of names or globs (['*'] for all), got {target_modules!r}")
    every = linears.all_linears(model, asked=target_modules or ())
    with as_value_error():
        names = linears.select(list(every), target_modules, "target_modules")
        measured = target_modules is None or packed
        sparsities = {name: mask.sparsity(every[name].weight) for name in names if measured}
        if target_modules is None:
            names = targets.pruned(sparsities, "target_modules", type(model).__name__)
        sizes = {name: (every[name].out_features, every[name].in_features) for name in names}
        targets.check_rank(kind, rank, sizes, "rank")
        if packed:
            dtype, remedy = every[names[0]].weight.dtype, "leave it out of target_modules, or leave packed out"
            targets.check_packable({name: sparsities[name] for name in names}, dtype, "packed", remedy)
    return names


def _check_plain(model: Any) -> None:
    """Refuse what is not a transformers model with float weights, or is wrapped."""
    if unwrapped(model) is not model or not hasattr(model, "config") or hasattr(model, "peft_config"):
        raise ValueError(f"a plain transformers model, not wrapped yet, got {type(model).__name__}")
    if getattr(model.config, "quantization_config", None):
        raise ValueError("a model whose weights are plain floats, got a quantised one")
