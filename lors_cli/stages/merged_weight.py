"""What a merge makes of one weight: the effective weight, or for a quantised model new codes on the same scales."""

import torch
from torch import Tensor, nn

from lors_cli.adapters import ON_DISK
from lors_cli.adapters.base import Adapter
from lors_cli.artifacts.adapter_file import AdapterFile
from lors_cli.config.schema import Merge
from lors_cli.errors import LorsError
from lors_cli.quantization.grid import codes_of
from lors_cli.quantization.stored import Quantized
from lors_cli.sparsity import mask


def _bind(content: AdapterFile, module: str, shape: torch.Size, dtype: torch.dtype | None) -> Adapter:
    """The adapter module of `module` with its tensors from the file, in `dtype`; its linear, of `shape`, has none."""
    rows, columns = shape
    rank, alpha = content.of(module)
    with torch.device("meta"):
        linear = nn.Linear(columns, rows, bias=False)
        adapter = ON_DISK[content.method].adapter(linear, rank=rank, alpha=alpha)
    for name, tensor in content.modules[module].items():
        floats = tensor.is_floating_point()
        setattr(adapter, name, nn.Parameter(tensor.to(dtype) if floats and dtype else tensor, requires_grad=floats))
    return adapter


@torch.no_grad()
def effective(
    content: AdapterFile, module: str, weight: Tensor, section: Merge, *, adapter_dtype: torch.dtype | None = None
) -> Tensor:
    """The effective weight (R, C) of the linear `module` with a frozen `weight`, in the dtype of that.

    The sum is made in `adapter_dtype`; left out, in that of the adapter's file.

    Raises:
        LorsError: it is not finite.

    """
    merged = finite(module, _bind(content, module, weight.shape, adapter_dtype).effective_weight(weight))
    return merged.where(weight != 0, 0) if section.apply_mask else merged


def exact(content: AdapterFile, module: str, weight: Quantized, section: Merge) -> Tensor:
    """The effective weight (R, C) of a quantised one, all in float64; errors as of `effective`."""
    return effective(content, module, weight.weight(torch.float64), section, adapter_dtype=torch.float64)


def rounded(content: AdapterFile, module: str, weight: Quantized, section: Merge) -> Quantized:
    """The same, rounded to the grid and the scales of the frozen weight."""
    codes = codes_of(exact(content, module, weight, section), weight.scales, weight.grid)
    return Quantized(codes, *weight.scales, weight.grid)


def finite(name: str, merged: Tensor) -> Tensor:
    """A merged weight or vector.

    Raises:
        LorsError: it is not finite.

    """
    if not mask.finite(merged):
        raise LorsError(f"{name}: the merged weight is not finite; the adapter is broken")
    return merged
