"""What other people's code needs of lors: models with adapters in a training loop that is not ours.

    load                   a model directory of any kind, also one that structured pruning made smaller, also packed
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
from typing import Any, TypeVar, cast, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lors_cli import adapters
from lors_cli.adapters import fit
from lors_cli.adapters.attached import Settings, check_plain, find, of_peft, place_vectors, round_anew, unwrapped, whole
from lors_cli.adapters.base import Adapter, Checkpointing, LowRankAdapter
from lors_cli.adapters.initialize import initialize_from_gradient
from lors_cli.adapters.replace import replace_linears
from lors_cli.artifacts import adapter_file
from lors_cli.errors import as_value_error, nearest
from lors_cli.models import codes, identity, linears, targets, vectors
from lors_cli.models.load import load_model
from lors_cli.models.packed import load_packed

Model = TypeVar("Model", bound=nn.Module)


def load(
    directory: str | PathLike[str],
    *,
    dtype: str = "auto",
    device: str = "cpu",
    packed: bool = False,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """The model in `directory`, in eval mode; also a structured-pruned one with blocks of any sizes.

    Args:
        directory: of a model, such as ``pruned`` of a run, or ``quantized``, whose codes become numbers.
        dtype: float32, bfloat16 or float16; auto: as the weights are stored.
        device: where to put it.
        packed: keep the linears of the blocks without their zeros, as they run; for this the directory may be one that
            ``lors pack`` made. The model is frozen.
        trust_remote_code: whether code that the directory brings may run.

    Raises:
        ValueError: it is not a model directory that transformers can build.
        LorsError: a weight file is missing or damaged.

    """
    make = load_packed if packed else load_model
    with as_value_error():
        return make(Path(directory), dtype, torch.device(device), trust_remote_code=trust_remote_code)


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
    zero_init: str | None = None,
    spp_beta: bool = True,
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
        zero_init: spp: which factor starts at zero: spp_beta, spp_alpha, both or none.
        spp_beta: spp: False leaves the factor of each row out.

    Returns:
        the same model.

    Raises:
        ValueError: the request does not fit the model or the method; the model is as it was.

    """
    way = _formulation(method, formulation)
    fields = way.options.model_fields
    for argument, asked, known in (
        (f"dropout={dropout}", dropout, "dropout" in fields),
        (f"adapter_checkpointing={adapter_checkpointing!r}", adapter_checkpointing, "adapter_checkpointing" in fields),
        ("stochastic=True", stochastic, "merge_rounding" in fields),
        ("packed=True", packed, "packed" in way.bases),
        (f"zero_init={zero_init!r}", zero_init, "zero_init" in fields),
        ("spp_beta=False", not spp_beta, "spp_beta" in fields),
    ):
        if asked and not known:
            raise ValueError(f"{argument}: {method} ({way.class_name}) does not have this option; leave it out")
    every = get_args(adapters.ZeroInit)
    starts = [one for one in every if not [*adapters.AblationOptions(zero_init=one, spp_beta=spp_beta).faults()]]
    if zero_init not in (None, *starts):
        expected = f"one of {', '.join(starts)} with spp_beta={spp_beta}"
        raise ValueError(f"expected zero_init as {expected}, got {zero_init!r}")
    if rank < 1 or alpha <= 0 or not 0 <= dropout < 1:
        raise ValueError(
            f"expected rank >= 1, alpha > 0 and 0 <= dropout < 1, got rank={rank}, alpha={alpha}, dropout={dropout}"
        )
    names = _targets(model, way.adapter, rank, target_modules, packed=packed)
    options: dict[str, Any] = {"rank": rank, "alpha": alpha, "dropout": dropout}
    options |= {"adapter_checkpointing": adapter_checkpointing, **({"stochastic": True} if stochastic else {})}
    options |= {"zero_init": zero_init, "spp_beta": spp_beta} if "zero_init" in fields else {}
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
    if core is not of_peft(model):
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
    content.quantization_aware = settings.quantization_aware
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
        check_plain(model)
    elif any(hasattr(parameter, "full_tensor") for parameter in core.parameters()):  # a DTensor
        raise ValueError("a model that is whole in this process; load the adapter before fully_shard")
    with as_value_error():
        content = adapter_file.load(path, "directory")
        dropout = adapter_file.read_dropout(path)
    method, rank, alpha, aware = kind = content.method, content.rank, content.alpha, content.quantization_aware
    if method not in adapters.METHODS:
        raise ValueError(f"an adapter that can be trained; {path} is for `lors merge` alone: load the merged model")
    if settings and kind != (settings.method, settings.rank, settings.alpha, settings.quantization_aware):
        got = f"{kind} in {path}"
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
    if settings is None and aware:
        codes.attach(model, content)
    elif settings is None:
        attach(model, method=method, rank=rank, alpha=alpha, target_modules=list(content.modules), dropout=dropout)
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
    check_plain(model)
    if isinstance(target_modules, str) or target_modules == []:
        raise ValueError(f"target_modules: a list of names or globs (['*'] for all), got {target_modules!r}")
    with as_value_error():
        return targets.of_model(model, kind, rank, target_modules, packed=packed)
