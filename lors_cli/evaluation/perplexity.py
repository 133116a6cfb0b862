"""Perplexity: exp of the mean loss per predicted token over consecutive windows.

Each window of L tokens predicts L - 1 of them, without context from the window before and without a BOS token, which
is what the SparseGPT and Wanda papers' code measures up to the BOS that some tokenizers put before the whole text.
"""

import math
import statistics
import sys
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lors_cli import processes
from lors_cli.data import windows
from lors_cli.data.sources import Source
from lors_cli.errors import UnmeasurableError

NOT_FINITE = "the model's activations overflow; try dtype: float32, and if that is in use, the model is broken"
LARGEST_LOSS = math.log(sys.float_info.max)  # 709.8 nats
LOGITS_PER_FORWARD = 2**26  # numbers; in float32 and with their copies in the loss near 1 GB


@dataclass(frozen=True)
class Text:
    """What perplexity is measured on: at most `most` windows of `length` tokens; all windows if it is None."""

    source: Source
    length: int
    most: int | None

    def windows(self, tokenizer: PreTrainedTokenizerBase) -> Tensor:
        """The windows, (windows, length), in the tokens of a model.

        Raises:
            RequestError: the text is missing, or too short for one window.

        """
        return windows.concatenated(self.source, tokenizer, self.length, self.most, at_most=True)


@torch.no_grad()
def window_losses(model: PreTrainedModel, tokens: Tensor) -> list[float]:
    """The summed loss in nats of each window of token ids, (windows, length); several processes share the work.

    Raises:
        UnmeasurableError: the model's loss is not finite.

    """
    length = tokens.shape[1]
    vocabulary = model.config.get_text_config().vocab_size
    batch = max(LOGITS_PER_FORWARD // (length * vocabulary), 1)
    ours: list[float] = []
    for part in tokens[processes.rank() :: processes.count()].split(batch):
        ids = part.to(model.device)
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
        losses = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        ours += losses.view(len(ids), -1).double().sum(1).tolist()
    shares = processes.everyone(ours)
    losses_of_all = [shares[number % len(shares)][number // len(shares)] for number in range(len(tokens))]
    for window, loss in enumerate(losses_of_all):
        if not math.isfinite(loss):
            raise UnmeasurableError(f"perplexity, window {window}: the loss is {loss}; {NOT_FINITE}")
    return losses_of_all


def of_losses(losses: list[float], length: int) -> dict[str, float | int]:
    """The perplexity of windows of `length` tokens with these summed losses.

    Returns:
        "value", "tokens", the number of predicted ones, and of several windows "stderr": as each holds as many tokens,
        the standard error of the mean over windows, carried through the exponential to first order.

    Raises:
        UnmeasurableError: the perplexity is larger than a float can hold.

    """
    means = [loss / (length - 1) for loss in losses]
    mean = math.fsum(means) / len(means)
    if mean > LARGEST_LOSS:
        raise UnmeasurableError(f"the mean loss is {mean:.4g} nats per token, so the perplexity is no float any more")
    value = math.exp(mean)
    facts = {"value": value, "tokens": len(losses) * (length - 1)}
    if len(means) > 1 and math.isfinite(error := value * statistics.stdev(means) / math.sqrt(len(means))):
        facts["stderr"] = error
    return facts


def perplexity(model: PreTrainedModel, tokens: Tensor) -> dict[str, float | int]:
    """The perplexity of `model` on windows of token ids, as `of_losses` gives it; arguments of `window_losses`."""
    return of_losses(window_losses(model, tokens), tokens.shape[1])
