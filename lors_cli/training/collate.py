"""Batches of examples of different lengths."""

import torch
from torch import Tensor

from lors_cli.data.instructions import IGNORED, Example


def collate(examples: list[Example], padding: int) -> dict[str, Tensor]:
    """Pad on the right to the longest example.

    Args:
        examples: token ids and labels.
        padding: the token id to pad with; its positions are not attended to and not learnt.

    Returns:
        input_ids, attention_mask and labels, each (examples, longest). Without padding there is no attention_mask,
        so that attention kernels take their causal path.

    """
    longest = max(len(example["input_ids"]) for example in examples)

    def padded(key: str, filler: int) -> Tensor:
        return torch.tensor([example[key] + [filler] * (longest - len(example[key])) for example in examples])

    batch = {"input_ids": padded("input_ids", padding), "labels": padded("labels", IGNORED)}
    lengths = torch.tensor([len(example["input_ids"]) for example in examples])
    if int(lengths.min()) < longest:
        batch["attention_mask"] = (torch.arange(longest) < lengths[:, None]).long()
    return batch
