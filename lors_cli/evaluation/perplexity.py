"""Perplexity: exp of the mean loss per predicted token over consecutive windows.

Each window of L tokens predicts L - 1 of them, without context from the window before and without a BOS token, which
is what the SparseGPT and Wanda papers' code measures up to the BOS that some tokenizers put before the whole text.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from lors_cli.errors import LorsError

LOGITS_PER_FORWARD = 2**26  # numbers; in float32 and with their copies in the loss near 1 GB


@torch.no_grad()
def perplexity(model: PreTrainedModel, windows: Tensor) -> dict[str, float | int]:
    """The perplexity of `model` on `windows` of token ids, (windows, length).

    Returns:
        "value", and "tokens", the number of predicted ones.

    Raises:
        LorsError: the model's loss is NaN.

    """
    length = windows.shape[1]
    vocabulary = model.config.get_text_config().vocab_size
    batch = max(LOGITS_PER_FORWARD // (length * vocabulary), 1)
    total = 0.0
    for part in windows.split(batch):
        ids = part.to(model.device)
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
        total += float(F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum").double())
    tokens = windows.shape[0] * (length - 1)
    mean = total / tokens
    if math.isnan(mean):
        raise LorsError("the model's loss is NaN: its weights or activations are not finite; try dtype: float32")
    return {"value": math.exp(mean) if mean < 700 else math.inf, "tokens": tokens}
