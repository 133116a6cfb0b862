"""The loss of a language model's head a chunk of tokens at a time: no tensor ever has tokens x vocabulary numbers.

N learnt tokens, hidden size H, vocabulary V; states h (N, H), head W (V, H) and b (V). With the logits z = h W^T + b, a
token's target y, a teacher's logits t, the teacher's weight w (0 without one) and the temperature T:

    loss    (1 - w) CE + w T^2 KL(p || q)           CE = logsumexp(z) - z_y, p = softmax(t / T), q = softmax(z / T)
    dz      (1 - w) (softmax(z) - onehot(y)) + w T (q - p)
    dh      dz W

The losses are summed to one number, so dh is known up to a factor as soon as z is: forward computes it while it has the
chunk's logits and saves nothing else (as Liger-Kernel does, Hsu et al. 2024, arXiv 2410.10989); backward multiplies.
W and b are frozen and get no gradient.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Numbers in a chunk's logits. Larger ones make the products no faster, and smaller ones read W more often.
CPU_ELEMENTS = 2**23
ACCELERATOR_ELEMENTS = 2**26


class Head(NamedTuple):
    """Weight (V, H) and bias (V) of a linear that turns states into logits."""

    weight: Tensor
    bias: Tensor | None

    def logits(self, states: Tensor) -> Tensor:
        """States (n, H) to logits (n, V): multiplied in the model's dtype, then converted to the one for losses."""
        return in_full(F.linear(states, self.weight, self.bias))


class Teacher(NamedTuple):
    """What the student is to predict: states (N, H'), their head, and the divergence's weight and temperature."""

    states: Tensor
    head: Head
    weight: float
    temperature: float


class Sums(NamedTuple):
    """Sums over tokens: loss = (1 - w) data + w teacher. Only `loss` has a gradient."""

    loss: Tensor
    data: Tensor
    teacher: Tensor


def in_full(logits: Tensor) -> Tensor:
    """float32 whatever the model's dtype; float64 stays, for exact tests."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def chunked_loss(states: Tensor, head: Head, targets: Tensor, teacher: Teacher | None = None) -> Sums:
    """The summed loss of N tokens, from their states (N, H) and targets (N).

    Raises:
        ValueError: the head is trainable; its gradient is never computed here.

    """
    if head.weight.requires_grad or (head.bias is not None and head.bias.requires_grad):
        raise ValueError("a frozen head: the chunked loss does not compute a gradient of its weight and bias")
    gradient = states.requires_grad and torch.is_grad_enabled()
    return Sums(*_ChunkedLoss.apply(states, head, targets, teacher, gradient))


def tokens_per_chunk(vocabulary: int, device: torch.device) -> int:
    """How many tokens' logits are computed together."""
    return max(chunk_elements(device) // vocabulary, 1)


def chunk_elements(device: torch.device) -> int:
    """How many numbers the logits of a chunk have, at most, unless a single token has more."""
    return CPU_ELEMENTS if device.type == "cpu" else ACCELERATOR_ELEMENTS


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states: Tensor, head: Head, targets: Tensor, teacher: Teacher | None, gradient: bool
    ) -> tuple[Tensor, ...]:
        data = in_full(states.new_zeros(len(states)))  # each token's, so that sums do not depend on the chunks
        divergence = torch.zeros_like(data)
        grad = torch.empty_like(states) if gradient else None
        size = tokens_per_chunk(len(head.weight), states.device)
        for first in range(0, len(states), size):
            part = slice(first, first + size)
            z = head.logits(states[part])
            pull = None
            if teacher:
                t = teacher.head.logits(teacher.states[part]).to(z.dtype)
                divergence[part], pull = _divergence(z, t, teacher.temperature, gradient=gradient)
            data[part] = _cross_entropy_(z, targets[part], gradient=gradient)
            if teacher and pull is not None:
                z.mul_(1 - teacher.weight).add_(pull, alpha=teacher.weight * teacher.temperature)
            if grad is not None:
                grad[part] = z.to(states.dtype) @ head.weight
        ctx.save_for_backward(grad)
        w, square = (teacher.weight, teacher.temperature**2) if teacher else (0.0, 1.0)
        sums = data.sum(), square * divergence.sum()
        ctx.mark_non_differentiable(*sums)
        return (1 - w) * sums[0] + w * sums[1], *sums

    @staticmethod
    @once_differentiable  # a second derivative would take dh for a constant
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        return grad * grad_loss, None, None, None, None


def _cross_entropy_(z: Tensor, targets: Tensor, *, gradient: bool) -> Tensor:
    """The cross-entropy (n) of logits z (n, V), which are overwritten, with its gradient if that is asked for.

    By PyTorch's own log_softmax, as on whole logits: on a CPU its float32 losses of a large vocabulary are about 3e-6
    low, and a loss must not depend on whether it is computed in chunks.
    """
    index = targets[:, None]
    log_q = torch.log_softmax(z, 1)
    losses = log_q.gather(1, index).squeeze(1).neg()
    if gradient:
        torch.exp(log_q, out=z).scatter_add_(1, index, z.new_full(index.shape, -1))
    return losses


def _divergence(z: Tensor, t: Tensor, temperature: float, *, gradient: bool) -> tuple[Tensor, Tensor | None]:
    """KL(p || q) of logits z and t (n, V), (n); and q - p, its gradient times T, if that is asked for.

    The logarithms are subtracted before they are weighted with p, or a small divergence would be lost in the rounding
    of two large sums.
    """
    log_q = torch.log_softmax(z / temperature, 1)
    log_p = torch.log_softmax(t / temperature, 1)
    p = log_p.exp()
    divergence = log_p.sub_(log_q).mul_(p).sum(1)
    return divergence, log_q.exp_().sub_(p) if gradient else None
