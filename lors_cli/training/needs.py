"""What a training will need of memory and hardware, and whether that is there."""

import math
from dataclasses import dataclass
from typing import Any

import torch

from lors_cli.config.schema import Train
from lors_cli.errors import request_error
from lors_cli.models import linears, load, memory


@dataclass(frozen=True)
class Needs:
    """Bytes that a training takes, apart from its activations."""

    trained: int  # numbers, not bytes
    weights: int
    cache: int
    logits: int

    @classmethod
    def of(cls, skeleton: Any, section: Train, names: list[str], dtype: str) -> "Needs":
        """Those of adapting the linears `names` of the (skeleton) model."""
        found = linears.all_linears(skeleton)
        sizes = [(found[name].out_features, found[name].in_features) for name in names]
        trained = sum(math.prod(shape) for s in sizes for shape in section.adapter.shapes(*s, section.rank).values())
        adapted = sum(map(math.prod, sizes)) * load.DTYPES[dtype].itemsize
        weights = load.weight_bytes(skeleton, dtype)
        tokens = section.samples_per_forward * section.sequence_length
        return cls(
            trained=trained,
            weights=weights - int(adapted * 7 / 16) if section.base == "packed" else weights,  # at 50 % of zeros
            cache=adapted if "merge_cache" in section.adapter.options and section.merge_cache != "off" else 0,
            logits=tokens * skeleton.config.get_text_config().vocab_size * 8,
        )

    def lines(self, section: Train) -> list[str]:
        """The figures, for people, with the settings that decide them."""
        tokens = section.samples_per_forward * section.sequence_length
        cache = f", merged weights {self.cache / 1e9:.2f} GB (merge_cache: {section.merge_cache})" if self.cache else ""
        return [
            f"memory: weights {self.weights / 1e9:.2f} GB (base: {section.base}), adapter and optimiser"
            f" {self.trained * 16 / 1e9:.2f} GB, logits {self.logits / 1e9:.2f} GB{cache}, activations of {tokens}"
            " tokens besides",
            f"disk: adapter {self.trained * 4 / 1e9:.3f} GB, checkpoints {self.trained * 24 / 1e9:.3f} GB meanwhile",
        ]

    def check(self, section: Train, dtype: str, device: torch.device) -> None:
        """Check that `device` can compute in `dtype` and, as far as can be told, has the memory for a whole cache.

        Raises:
            RequestError: it cannot, or has not.

        """
        load.check_dtype(dtype, device, "train.dtype")
        if dtype != "bfloat16" and section.merge_rounding == "stochastic":
            got = f"stochastic with {dtype}"
            raise request_error("train.merge_rounding", "nearest: only bfloat16 is coarse enough", got, "leave it out")
        free = memory.free_device(device) or memory.free_host()
        total = self.weights + 16 * self.trained + self.logits + self.cache
        if section.merge_cache == "full" and total > free:
            raise request_error(
                "train.merge_cache",
                f"{total / 1e9:.2f} GB of free memory on {device}, {self.cache / 1e9:.2f} of them for the cache",
                f"{free / 1e9:.2f} GB",
                "merge_cache: auto keeps as many merged weights as fit; base: packed saves memory",
            )
