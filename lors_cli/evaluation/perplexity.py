"""Perplexity: exp of the mean loss per predicted token over consecutive windows of text, or over rows of instructions.

Each window of L tokens predicts L - 1 of them, without context from the window before and without a BOS token, which
is what the SparseGPT and Wanda papers' code measures up to the BOS that some tokenizers put before the whole text.
Of rows every counted token weighs alike, whatever row it is in.
"""

import math
import statistics
import sys
from collections.abc import Callable

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from lors_cli import processes
from lors_cli.data.example import IGNORED
from lors_cli.errors import UnmeasurableError
from lors_cli.evaluation.judged import Sample

NOT_FINITE = "the model's activations overflow; try dtype: float32, and if that is in use, the model is broken"
LARGEST_LOSS = math.log(sys.float_info.max)  # 709.8 nats
LOGITS_PER_FORWARD = 2**26  # numbers; in float32 and with their copies in the loss near 1 GB


@torch.no_grad()
def sample_losses(
    model: PreTrainedModel, samples: list[Sample], advance: Callable[..., None] = lambda **_: None
) -> list[float]:
    """The summed loss in nats of each sample's counted tokens; several processes share the work.

    `advance` is called with ``steps``, how many more of this process's samples were measured.

    Raises:
        UnmeasurableError: the model's loss is not finite.

    """
    vocabulary = model.config.get_text_config().vocab_size
    order = sorted(range(len(samples)), key=lambda number: -len(samples[number].ids))  # together those of one length
    ours: list[float] = []
    left = order[processes.rank() :: processes.count()]
    while left:
        longest = len(samples[left[0]].ids)
        batch = max(LOGITS_PER_FORWARD // (longest * vocabulary), 1)
        part, left = [samples[number] for number in left[:batch]], left[batch:]
        # no token looks ahead, so that padding on the right changes nothing before it
        ids, labels = (
            torch.tensor([tokens + [filler] * (longest - len(tokens)) for tokens in column]).to(model.device)
            for column, filler in (([one.ids for one in part], 0), ([one.labels for one in part], IGNORED))
        )
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
        losses = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="none", ignore_index=IGNORED)
        ours += losses.view(len(part), -1).double().sum(1).tolist()
        advance(steps=len(part))
    shares = processes.everyone(ours)
    losses_of_all = [0.0] * len(samples)
    for place, number in enumerate(order):
        losses_of_all[number] = shares[place % len(shares)][place // len(shares)]
    for sample, loss in zip(samples, losses_of_all, strict=True):
        if not math.isfinite(loss):
            raise UnmeasurableError(f"perplexity, sample {sample.number}: the loss is {loss}; {NOT_FINITE}")
    return losses_of_all


def of_losses(losses: list[float], counts: list[int]) -> dict[str, float | int]:
    """The perplexity of samples with these summed losses over these counts of predicted tokens, all tokens alike.

    Returns:
        "value", "tokens", the number of predicted ones, and of several samples "stderr": the standard error of the
        mean loss, a ratio of two sums over samples, linearised, and carried through the exponential to first order.

    Raises:
        UnmeasurableError: the perplexity is larger than a float can hold.

    """
    tokens, number = sum(counts), len(counts)
    parts = [count / (tokens / number) for count in counts]  # all 1 where samples have as many tokens
    means = [loss / count for loss, count in zip(losses, counts, strict=True)]
    mean = math.fsum(part * one for part, one in zip(parts, means, strict=True)) / number
    if mean > LARGEST_LOSS:
        raise UnmeasurableError(f"the mean loss is {mean:.4g} nats per token, so the perplexity is no float any more")
    value = math.exp(mean)
    facts = {"value": value, "tokens": tokens}
    apart = [part * one - (part - 1) * mean for part, one in zip(parts, means, strict=True)]
    if number > 1 and math.isfinite(error := value * statistics.stdev(apart) / math.sqrt(number)):
        facts["stderr"] = error
    return facts
