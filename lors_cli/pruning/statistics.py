"""What calibration gathers about the inputs X (N, C) of a linear, one batch at a time, in float32.

``STATISTICS`` maps the name that a pruning method asks for to the class that gathers it.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lors_cli.sparsity import mask

PANEL = 384  # rows of a Hessian updated together


class Statistic:
    """Running quantities over the tokens seen. `vectors` names the attributes that have one number per feature."""

    vectors: tuple[str, ...]

    def __init__(self) -> None:
        self.tokens = 0
        self.samples = 0
        for name in self.vectors:
            setattr(self, name, torch.zeros(()))

    def reduce(self, add_up: Callable[[Tensor], Tensor]) -> None:
        """Join with those of the other processes; `add_up` replaces a tensor by its sum over all of them."""
        for name in self.vectors:
            add_up(getattr(self, name))
        counts = add_up(torch.tensor([self.tokens, self.samples])).tolist()
        self.tokens, self.samples = counts

    def finite(self) -> bool:
        """Whether all numbers are."""
        return all(mask.finite(getattr(self, name)) for name in self.vectors)

    def permute(self, index: Tensor) -> None:
        """Reorder the features as ``x[..., index]`` does."""
        for name in self.vectors:
            setattr(self, name, getattr(self, name)[index])


class InputNorm(Statistic):
    """The L2 norm of each input feature over all tokens, (C,)."""

    vectors = ("square_sum",)
    square_sum: Tensor

    def add(self, inputs: Tensor) -> None:
        """Take in `inputs` (..., C)."""
        x = inputs.reshape(-1, inputs.shape[-1]).float()
        self.square_sum = self.square_sum.to(x.device) + x.square().sum(dim=0)
        self.tokens += len(x)

    def value(self) -> Tensor:
        """(C,), float32."""
        return self.square_sum.sqrt()


class Hessian(Statistic):
    """The Hessian of the layer's squared error, 2 X^T X / samples, (C, C).

    A running mean, sample by sample, as in SparseGPT's published code: see `sparsegpt` for why the order matters.
    While it runs only the panels on and right of the diagonal are kept up, because the matrix is symmetric to the bit.
    """

    vectors = ("mean",)
    mean: Tensor

    def add(self, inputs: Tensor) -> None:
        """Take in `inputs`, (samples, length, C) or (length, C) for one."""
        samples, columns = (len(inputs) if inputs.dim() == 3 else 1), inputs.shape[-1]
        if self.samples == 0:
            self.mean = torch.zeros(columns, columns, device=inputs.device)
        x = inputs.reshape(-1, columns)
        before, self.samples = self.samples, self.samples + samples
        self.tokens += len(x)
        exact = x.is_cuda and x.dtype in (torch.bfloat16, torch.float16)
        scaled = x.t() if exact else (math.sqrt(2 / self.samples) * x.float()).t().contiguous()
        for start in range(0, columns, PANEL):
            panel = self.mean[start : start + PANEL, start:]
            panel *= before / self.samples
            if exact:  # products of such numbers are exact in float32, so the tensor cores lose nothing
                product = torch.mm(scaled[start : start + PANEL], x[:, start:], out_dtype=torch.float32)
                panel.add_(product, alpha=2 / self.samples)
            else:
                panel += scaled[start : start + PANEL] @ scaled[start:].t()

    def value(self) -> Tensor:
        """(C, C), float32."""
        for start in range(0, len(self.mean), PANEL):
            stop = start + PANEL
            self.mean[stop:, start:stop] = self.mean[start:stop, stop:].t()
        return self.mean

    def reduce(self, add_up: Callable[[Tensor], Tensor]) -> None:
        """Join with those of the other processes."""
        self.mean *= self.samples
        super().reduce(add_up)
        self.mean /= self.samples

    def permute(self, index: Tensor) -> None:
        """Reorder the features as ``x[..., index]`` does."""
        self.mean = self.value()[index][:, index]


class Moments(NamedTuple):
    """What `InputMoments` gathers, each (C,) float32."""

    norm: Tensor  # L2, over all tokens
    sum: Tensor  # over the tokens of a sample, averaged over the samples
    variance: Tensor  # over the tokens of a sample, averaged over all tokens


class InputMoments(Statistic):
    """Norm, sum and variance of each input feature, what DSnoT (see `dsnot`) needs.

    The published code takes the variance of each call's tokens; there a call is one sample, and here a sample counts
    by itself in a call of several too.
    """

    vectors = ("square_sum", "sum", "weighted_variance")
    square_sum: Tensor
    sum: Tensor
    weighted_variance: Tensor  # variances times tokens

    def add(self, inputs: Tensor) -> None:
        """Take in `inputs`, (samples, length, C) or (length, C) for one."""
        x = (inputs if inputs.dim() == 3 else inputs[None]).float()
        self.square_sum = self.square_sum.to(x.device) + x.square().sum(dim=(0, 1))
        self.sum = self.sum.to(x.device) + x.sum(dim=(0, 1))
        variance = x.var(dim=1, correction=0).sum(dim=0) * x.shape[1]
        self.weighted_variance = self.weighted_variance.to(x.device) + variance
        self.samples += x.shape[0]
        self.tokens += x.shape[0] * x.shape[1]

    def value(self) -> Moments:
        """Three of (C,), float32."""
        return Moments(
            norm=self.square_sum.sqrt(),
            sum=self.sum / self.samples,
            variance=self.weighted_variance / self.tokens,
        )


STATISTICS: dict[str, type[InputNorm | Hessian | InputMoments]] = {
    "input_norm": InputNorm,
    "hessian": Hessian,
    "input_moments": InputMoments,
}
