"""Perplexity: exp of the mean loss per predicted token over consecutive windows.

Each window of L tokens predicts L - 1 of them, without context from the window before and without a BOS token, which
is what the SparseGPT and Wanda papers' code measures up to the BOS that some tokenizers put before the whole text.
"""

import math
import statistics

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from lors_cli import processes
from lors_cli.errors import LorsError

LOGITS_PER_FORWARD = 2**26  # numbers; in float32 and with their copies in the loss near 1 GB


@torch.no_grad()
def window_losses(model: PreTrainedModel, windows: Tensor) -> list[float]:
    """The summed loss of each window of token ids, (windows, length), in nats; several processes share the work.

    Raises:
        LorsError: the model's loss is NaN.

    """
    length = windows.shape[1]
    vocabulary = model.config.get_text_config().vocab_size
    batch = max(LOGITS_PER_FORWARD // (length * vocabulary), 1)
    ours: list[float] = []
    for part in windows[processes.rank() :: processes.count()].split(batch):
        ids = part.to(model.device)
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
        losses = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        ours += losses.view(len(ids), -1).double().sum(1).tolist()
    shares = processes.everyone(ours)
    found = [shares[number % len(shares)][number // len(shares)] for number in range(len(windows))]
    if any(map(math.isnan, found)):
        raise LorsError("the model's loss is NaN: its weights or activations are not finite; try dtype: float32")
    return found


def of_losses(losses: list[float], length: int) -> dict[str, float | int]:
    """The perplexity of windows of `length` tokens with these summed losses.

    Returns:
        "value", "tokens", the number of predicted ones, and of several windows "stderr": as each holds as many tokens,
        the standard error of the mean over windows, carried through the exponential to first order.

    """
    means = [loss / (length - 1) for loss in losses]
    mean = math.fsum(means) / len(means)
    value = math.exp(mean) if mean < 700 else math.inf
    found = {"value": value, "tokens": len(losses) * (length - 1)}
    if len(means) > 1 and math.isfinite(value):
        found["stderr"] = value * statistics.stdev(means) / math.sqrt(len(means))
    return found


def perplexity(model: PreTrainedModel, windows: Tensor) -> dict[str, float | int]:
    """The perplexity of `model` on `windows` of token ids, (windows, length), as `of_losses` gives it.

    Raises:
        LorsError: the model's loss is NaN.

    """
    return of_losses(window_losses(model, windows), windows.shape[1])
