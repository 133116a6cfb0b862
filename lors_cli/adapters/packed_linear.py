"""A frozen linear whose weight is kept without its zeros; see `lors_cli.sparsity.packed` for the layouts."""

from torch import Tensor, nn

from lors_cli.sparsity.packed import Stored, pack, unpack


class PackedLinear(nn.Module):
    """The place of a linear (R, C) in an adapter that multiplies with the packed weight itself.

    Its tensors are frozen parameters, so that what shards or moves a model's parameters takes them along.

    Args:
        linear: the linear to pack; its bias is shared.
        layout: "2:4" or "bitmask"; the smaller one that fits if left out.

    Raises:
        ValueError: the weight does not fit the layout.

    """

    weight: nn.Parameter
    positions: nn.Parameter
    starts: nn.Parameter | None

    def __init__(self, linear: nn.Linear, layout: str | None = None) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        stored = pack(linear.weight.detach(), layout)
        for name, tensor in zip(("weight", "positions", "starts"), stored, strict=True):
            self.register_parameter(name, None if tensor is None else nn.Parameter(tensor, requires_grad=False))

    @property
    def stored(self) -> Stored:
        """The packed weight."""
        return Stored(self.weight, self.positions, self.starts)

    def dense_weight(self) -> Tensor:
        """The weight (R, C) as it was before packing."""
        return unpack(self.stored, (self.out_features, self.in_features))
