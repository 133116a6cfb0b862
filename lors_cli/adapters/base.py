"""What every adapter is: a module around a frozen linear, with a pure ``effective_weight``.

Shapes, everywhere in this package: weight (R, C) = (out, in), N tokens, X (N, C), Y (N, R), lora_A (rank, C),
lora_B (R, rank), ``scale = alpha / rank``. There is no merged state: merging writes a new model. The registry of
methods is `lors_cli.adapters`, and docs/add-a-method.md shows how to add one.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Checkpointing = bool | Literal["reentrant"]


class Adapter(nn.Module):
    """A frozen linear and the trainable tensors of one method.

    Args:
        linear: the linear to adapt; its weight and bias are frozen, its weight's support is the mask.
        rank: rank of the update.
        alpha: the update is scaled by ``alpha / rank``.
        dropout: probability of dropping an input of the update, for the methods that have it.
        adapter_checkpointing: whether the method's own intermediate tensors are recomputed in backward instead of saved
            (the "-gc" variants of the papers); "reentrant" as PyTorch's older checkpoints do it, which run the whole
            forward again.

    """

    parameter_names: ClassVar[tuple[str, ...]]
    # Those of the parameters that are masks, eight entries a byte, and are not trained.
    bit_names: ClassVar[tuple[str, ...]] = ()
    # In which forms it can have the frozen weight.
    bases: ClassVar[tuple[str, ...]] = ("dense",)

    def __init__(
        self,
        linear: nn.Linear,
        *,
        rank: int,
        alpha: float,
        dropout: float = 0.0,
        adapter_checkpointing: Checkpointing = False,
    ) -> None:
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.rank = rank
        self.scale = alpha / rank
        self.dropout = nn.Dropout(dropout)
        self.adapter_checkpointing: Checkpointing = adapter_checkpointing

    @property
    def shape(self) -> tuple[int, int]:
        """(R, C)."""
        return self.linear.out_features, self.linear.in_features

    @property
    def dtype(self) -> torch.dtype:
        """That of the frozen weight, as it is multiplied with."""
        dtype: torch.dtype = getattr(self.linear, "dtype", self.linear.weight.dtype)
        return dtype

    @property
    def parameter_dtype(self) -> torch.dtype:
        """float32 whatever the model's dtype: small updates vanish in bf16. float64 stays, for exact tests."""
        return torch.promote_types(self.dtype, torch.float32)

    def new_parameter(self, rows: int, columns: int) -> nn.Parameter:
        """Zeros (rows, columns) beside the frozen weight, in `parameter_dtype`."""
        device = self.linear.weight.device
        return nn.Parameter(torch.zeros(rows, columns, dtype=self.parameter_dtype, device=device))

    def effective_weight(self, weight: Tensor) -> Tensor:
        """The effective weight (R, C) for the frozen `weight`, in its dtype; `weight` itself is not changed."""
        raise NotImplementedError

    @classmethod
    def shapes(cls, out_features: int, in_features: int, rank: int) -> dict[str, tuple[int, int]]:
        """The shape of each tensor in an adapter file.

        Raises:
            ValueError: the method cannot have that rank on a weight (out_features, in_features).

        """
        raise NotImplementedError

    @classmethod
    def trained(cls, out_features: int, in_features: int, rank: int, **options: Any) -> dict[str, tuple[int, int]]:
        """The shapes of those tensors that are trained with the method's `options`: of all, unless one takes some out.

        Raises:
            ValueError: as of `shapes`.

        """
        return cls.shapes(out_features, in_features, rank)

    def tensors(self) -> dict[str, Any]:
        """The trainable tensors by their names in an adapter file; what an option leaves out is in it as a constant."""
        return {name: getattr(self, name) for name in self.parameter_names}

    def _as_multiplied(self, x: Tensor) -> Tensor:
        """`x` in the dtype that a linear would multiply it in: autocast's, else its own, which must be the weight's."""
        kind = x.device.type
        if torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
            return x.to(torch.get_autocast_dtype(kind))
        if x.dtype != self.dtype:
            raise TypeError(f"inputs of the weight's dtype {self.dtype}, got {x.dtype}")
        return x

    def _checkpointed(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """``function(x)``, recomputed in backward if this adapter does so."""
        if not self.adapter_checkpointing or not torch.is_grad_enabled():
            return function(x)
        if self.adapter_checkpointing == "reentrant":
            # such checkpoints give gradients only where an argument needs one; the first block's x does not
            anchor = torch.empty(0, device=x.device, requires_grad=True)
            y: Tensor = checkpoint(  # type: ignore[assignment]
                lambda x, _: own(function(x), x.shape[:-1]), x, anchor, use_reentrant=True
            )
        else:
            y = checkpoint(function, x, use_reentrant=False)  # type: ignore[assignment]
        return y


class LowRankAdapter(Adapter):
    """An adapter whose update is a function of the product ``lora_B @ lora_A``."""

    parameter_names: ClassVar[tuple[str, ...]] = ("lora_A", "lora_B")
    active_rank: int | None = None

    def __init__(self, linear: nn.Linear, **options: Any) -> None:
        super().__init__(linear, **options)
        rows, columns = self.shape
        self.lora_A = self.new_parameter(self.rank, columns)
        self.lora_B = self.new_parameter(rows, self.rank)
        nn.init.kaiming_uniform_(self.lora_A, a=5**0.5)

    @property
    def factors(self) -> tuple[Tensor, Tensor]:
        """lora_A and lora_B of the update: in training the first `active_rank` rows and columns, if that is set."""
        if self.active_rank is None or not self.training:
            return self.lora_A, self.lora_B
        return self.lora_A[: self.active_rank], self.lora_B[:, : self.active_rank]

    @classmethod
    def shapes(cls, out_features: int, in_features: int, rank: int) -> dict[str, tuple[int, int]]:
        """lora_A (rank, C) and lora_B (R, rank)."""
        if rank > min(out_features, in_features):
            raise ValueError(f"a rank of at most {min(out_features, in_features)}, the smaller side of the matrix")
        return {"lora_A": (rank, in_features), "lora_B": (out_features, rank)}


def own(product: Tensor, rows: torch.Size) -> Tensor:
    """A fresh `product` as (*rows, columns) that is not a view: views out of custom backwards refuse in-place changes.

    Models such as Falcon add to the outputs of their linears in place.
    """
    result: Tensor = torch.ops.aten._unsafe_view(product, [*rows, product.shape[-1]])
    return result


def low_rank_sum(weight: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
    """``weight + scale * lora_B @ lora_A``, (R, C): summed in the adapter's precision, rounded once to weight's dtype.

    The low-rank parts must not be rounded to bf16 first: an update below half a unit in the last place of a weight
    is lost in the final rounding in any case, and two roundings lose more.
    """
    return torch.addmm(weight.to(lora_A.dtype), lora_B, lora_A, alpha=scale).to(weight.dtype)
