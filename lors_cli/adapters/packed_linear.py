"""A frozen linear whose weight is kept without its zeros; see `lors_cli.sparsity.packed` for the layouts."""

from typing import Any

import torch
from torch import Tensor, nn

from lors_cli.kernels import huge_pages
from lors_cli.kernels import packed as kernel
from lors_cli.sparsity.packed import Stored, pack

TENSORS = ("weight", "positions", "starts", "scale", "zero_point")
ONLY_RUNS = "a packed model only runs: train the unpacked one, whose weights `train.base: packed` keeps packed"


class PackedLinear(nn.Module):
    """The place of a linear (R, C): in a model that runs, or in an adapter that multiplies with the weight itself.

    Its tensors are frozen parameters, so that what shards or moves a model's parameters takes them along.

    Args:
        linear: the linear to pack; its bias is shared.
        layout: "2:4" or "bitmask"; the smaller one that fits if left out.
        stored: its weight, if that is packed already; then the linear's own may be on the meta device.

    Raises:
        ValueError: the weight does not fit the layout.

    """

    weight: nn.Parameter
    positions: nn.Parameter | None
    starts: nn.Parameter | None
    scale: nn.Parameter | None
    zero_point: nn.Parameter | None
    dtype: torch.dtype  # of what it multiplies with

    def __init__(self, linear: nn.Linear, layout: str | None = None, *, stored: Stored | None = None) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        self.dtype = linear.weight.dtype
        self._hold(stored or pack(linear.weight.detach(), layout))

    def _hold(self, stored: Stored) -> None:
        for name, tensor in zip(TENSORS, stored, strict=True):
            kept = None if tensor is None else nn.Parameter(huge_pages.placed(tensor), requires_grad=False)
            self.register_parameter(name, kept)

    @property
    def stored(self) -> Stored:
        """The packed weight."""
        held: Any = self._parameters
        return Stored(*map(held.get, TENSORS))

    def dense_weight(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight (R, C) as it was before packing; what codes stand for in `dtype`, or in that of the inputs."""
        shape = self.out_features, self.in_features
        return kernel.weight_rows(self.stored, shape, 0, self.out_features, dtype or self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """``x W^T + bias``, for x (..., C).

        Raises:
            ValueError: a gradient is asked for.

        """
        bias = self.bias
        if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
            raise ValueError(ONLY_RUNS)
        return kernel.multiply(self.stored, (self.out_features, self.in_features), x, bias)

    def extra_repr(self) -> str:
        """Its size and its layout, as `nn.Linear` shows its size."""
        return f"in_features={self.in_features}, out_features={self.out_features}, layout={self.stored.layout}"
