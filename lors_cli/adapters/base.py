"""What every adapter is: a module around a frozen linear, with a pure ``merged_weight``.

Shapes, everywhere in this package: weight (R, C) = (out, in), N tokens, X (N, C), Y (N, R), lora_A (rank, C),
lora_B (R, rank), ``scale = alpha / rank``. There is no merged state: merging writes a new model.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn


class Adapter(nn.Module):
    """A frozen linear and the trainable tensors of one method.

    Args:
        linear: the linear to adapt; its weight and bias are frozen, its weight's support is the mask.
        rank: rank of the update.
        alpha: the update is scaled by ``alpha / rank``.
        dropout: probability of dropping an input of the update, for the methods that have it.
        checkpoint: whether the method's own intermediate tensors are recomputed in backward instead of saved
            (the "-gc" variants of the papers).

    """

    parameter_names: ClassVar[tuple[str, ...]]

    def __init__(
        self, linear: nn.Linear, *, rank: int, alpha: float, dropout: float = 0.0, checkpoint: bool = False
    ) -> None:
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.rank = rank
        self.scale = alpha / rank
        self.dropout = nn.Dropout(dropout)
        self.checkpoint = checkpoint

    @property
    def parameter_dtype(self) -> torch.dtype:
        """float32 whatever the model's dtype: small updates vanish in bf16. float64 stays, for exact tests."""
        return torch.promote_types(self.linear.weight.dtype, torch.float32)

    def new_parameter(self, rows: int, columns: int) -> nn.Parameter:
        """Zeros (rows, columns) beside the frozen weight, in `parameter_dtype`."""
        device = self.linear.weight.device
        return nn.Parameter(torch.zeros(rows, columns, dtype=self.parameter_dtype, device=device))

    def merged_weight(self, weight: Tensor) -> Tensor:
        """The effective weight (R, C) for the frozen `weight`, in its dtype; `weight` itself is not changed."""
        raise NotImplementedError

    @classmethod
    def shapes(cls, out_features: int, in_features: int, rank: int) -> dict[str, tuple[int, int]]:
        """The shape of each trainable tensor.

        Raises:
            ValueError: the method cannot have that rank on a weight (out_features, in_features).

        """
        raise NotImplementedError

    def tensors(self) -> dict[str, nn.Parameter]:
        """The trainable tensors by their names in an adapter file."""
        return {name: getattr(self, name) for name in self.parameter_names}


class LowRankAdapter(Adapter):
    """An adapter whose update is a function of the product ``lora_B @ lora_A``."""

    parameter_names = ("lora_A", "lora_B")

    def __init__(self, linear: nn.Linear, **options: float) -> None:
        super().__init__(linear, **options)  # type: ignore[arg-type]
        rows, columns = linear.weight.shape
        self.lora_A = self.new_parameter(self.rank, columns)
        self.lora_B = self.new_parameter(rows, self.rank)
        nn.init.kaiming_uniform_(self.lora_A, a=5**0.5)

    @classmethod
    def shapes(cls, out_features: int, in_features: int, rank: int) -> dict[str, tuple[int, int]]:
        """lora_A (rank, C) and lora_B (R, rank)."""
        if rank > min(out_features, in_features):
            raise ValueError(f"a rank of at most {min(out_features, in_features)}, the smaller side of the matrix")
        return {"lora_A": (rank, in_features), "lora_B": (out_features, rank)}


def low_rank_sum(weight: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
    """``weight + scale * lora_B @ lora_A``, (R, C): summed in the adapter's precision, rounded once to weight's dtype.

    The low-rank parts must not be rounded to bf16 first: an update below half a unit in the last place of a weight
    is lost in the final rounding in any case, and two roundings lose more.
    """
    return torch.addmm(weight.to(lora_A.dtype), lora_B, lora_A, alpha=scale).to(weight.dtype)
