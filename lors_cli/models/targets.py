"""Which linears of a model are adapted, and whether the method can have its rank on them and its weights be packed."""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import nn

from lors_cli.adapters import fit
from lors_cli.adapters.base import Adapter
from lors_cli.artifacts import tensors
from lors_cli.errors import request_error
from lors_cli.models import linears
from lors_cli.sparsity import mask
from lors_cli.sparsity import packed as packing


def of_model(
    model: nn.Module, kind: type[Adapter], rank: int, patterns: list[str] | None, *, packed: bool
) -> list[str]:
    """The names of the linears of `model` to adapt by `patterns`, or of those with zeros.

    Raises:
        RequestError: there are none, or one is too small for the rank or not worth packing.

    """
    every = linears.all_linears(model, asked=patterns or ())
    names = linears.select(list(every), patterns, "target_modules")
    sparsities = {name: mask.sparsity(every[name].weight) for name in names if patterns is None or packed}
    if patterns is None:
        names = pruned(sparsities, "target_modules", type(model).__name__)
    check_rank(kind, rank, {name: (every[name].out_features, every[name].in_features) for name in names}, "rank")
    if packed:
        dtype, remedy = every[names[0]].weight.dtype, "leave it out of target_modules, or leave packed out"
        check_packable({name: sparsities[name] for name in names}, dtype, "packed", remedy)
    return names


def check_rank(kind: type[Adapter], rank: int, sizes: Mapping[str, tuple[int, int]], key: str) -> None:
    """Check that a method can have that rank on every linear of these `sizes` (R, C), by their names.

    Raises:
        RequestError: it cannot; `key` is where the rank was asked for. The tightest linear is named.

    """
    for name, size in sorted(sizes.items(), key=lambda item: min(item[1])):
        if reason := fit.misfit(kind, rank, size):
            remedy = f"for all linears: {fit.ranks(kind, sizes.values())}"
            raise request_error(key, f"{reason} {size} of {name}", rank, remedy)


def pruned(sparsities: Mapping[str, float], key: str, model: object) -> list[str]:
    """The linears that were pruned, by the `sparsities` of all.

    Raises:
        RequestError: none was; `key` is where linears can be named instead, `model` says which model this is.

    """
    names = [name for name, sparsity in sparsities.items() if sparsity >= mask.DENSE_BELOW]
    if not names:
        raise request_error(
            key,
            "linears to adapt; without it, those that were pruned",
            f"{model}, none of whose linears has zeros",
            f"prune the model first, or name the linears ({key}: ['*'] for all)",
        )
    return names


def check_coded(names: Sequence[str], coded: Collection[str], key: str) -> None:
    """Check that linears which are trained on the grid of a quantised model are all on it, being among the `coded`.

    Raises:
        RequestError: one is not; `key` is where they can be named.

    """
    if left := [name for name in names if name not in coded]:
        last = {name: name.rpartition(".")[2] for name in names}
        others = dict.fromkeys(last[name] for name in names if name in coded)
        kept = ", ".join(other for other in others if other not in {last[name] for name in left})
        remedy = (f"write {key}: [{kept}], or " if kept else "") + "set quantization_aware: false"
        raise request_error(key, "linears that are quantised, with quantization_aware: true", left[0], remedy)


def check_packable(sparsities: Mapping[str, float], dtype: torch.dtype, key: str, remedy: str) -> None:
    """Check that no weight would only grow when it is packed.

    Raises:
        RequestError: one would; `key` is where packing was asked for, `remedy` what to do.

    """
    least = packing.smallest_sparsity(dtype)
    name, sparsity = min(sparsities.items(), key=lambda item: item[1])
    if sparsity < least:
        raise request_error(
            key,
            f"linears of which at least {least:.3f} are zeros, to pack in {tensors.dtype_name(dtype)}",
            f"{name} with {sparsity:.3f}",
            remedy,
        )
