"""Which linears of a model are adapted, and whether the method can have its rank on them and its weights be packed."""

from collections.abc import Mapping

import torch

from lors_cli.adapters import fit
from lors_cli.adapters.base import Adapter
from lors_cli.artifacts import tensors
from lors_cli.errors import request_error
from lors_cli.sparsity import mask, packed


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


def check_packable(sparsities: Mapping[str, float], dtype: torch.dtype, key: str, remedy: str) -> None:
    """Check that no weight would only grow when it is packed.

    Raises:
        RequestError: one would; `key` is where packing was asked for, `remedy` what to do.

    """
    least = packed.smallest_sparsity(dtype)
    name, sparsity = min(sparsities.items(), key=lambda item: item[1])
    if sparsity < least:
        raise request_error(
            key,
            f"linears of which at least {least:.3f} are zeros, to pack in {tensors.dtype_name(dtype)}",
            f"{name} with {sparsity:.3f}",
            remedy,
        )
