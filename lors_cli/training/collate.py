"""Batches of examples of different lengths."""

import torch
from torch import Tensor

from lors_cli.data.example import IGNORED, Example


def collate(examples: list[Example], padding: int) -> dict[str, Tensor]:
    """Pad on the right to the longest example.

    Args:
        examples: token ids and labels; in packed ones also the lengths of their documents.
        padding: the token id to pad with; its positions are not attended to and not learnt.

    Returns:
        input_ids, attention_mask and labels, each (examples, longest). Without padding there is no attention_mask,
        so that attention kernels take their causal path. With a packed example there is none either, but position_ids
        that restart in each document and in the padding: by these transformers keeps documents apart in a model that
        does not cache (use_cache), and only where there is no mask.

    """
    longest = max(len(example["input_ids"]) for example in examples)

    def padded(key: str, filler: int) -> Tensor:
        return torch.tensor([example[key] + [filler] * (longest - len(example[key])) for example in examples])

    batch = {"input_ids": padded("input_ids", padding), "labels": padded("labels", IGNORED)}
    if any("documents" in example for example in examples):
        batch["position_ids"] = torch.stack([_positions(example, longest) for example in examples])
        return batch
    lengths = torch.tensor([len(example["input_ids"]) for example in examples])
    if int(lengths.min()) < longest:
        batch["attention_mask"] = (torch.arange(longest) < lengths[:, None]).long()
    return batch


def _positions(example: Example, longest: int) -> Tensor:
    """The place of each token in its document, (longest,); padding is one more document."""
    size = len(example["input_ids"])
    return torch.cat([torch.arange(length) for length in (*example.get("documents", [size]), longest - size)])
