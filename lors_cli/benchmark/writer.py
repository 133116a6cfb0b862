"""A model that reads a prompt and writes tokens one by one, with the time of each."""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache

from lors_cli.adapters.packed_linear import PackedLinear
from lors_cli.benchmark import clock
from lors_cli.kernels import gemv


class Writer:
    """Writes greedily after a random prompt, again and again.

    On CUDA the keys and values are in a cache of a fixed size, and the work of a token is captured once as a CUDA
    graph: its kernels would take longer to launch one by one than to run. Packed weights that no kernel multiplies
    there are unpacked with waits for the device, which a graph cannot hold: such a model is not captured.

    Args:
        model: on one device.
        batch: sequences that are written at once.
        length: tokens of the prompt.
        tokens: to write after the prompt's own.
        static: whether the cache has a fixed size; on CUDA it has if left out.

    Attributes:
        captured: whether a token is a CUDA graph.
        token: (batch, 1), the last one that was written.

    """

    def __init__(self, model: Any, batch: int, length: int, tokens: int, *, static: bool | None = None) -> None:
        self.model, self.length, self.tokens, self.device = model, length, tokens, model.device
        self.static = self.device.type == "cuda" if static is None else static
        packed = [module for module in model.modules() if isinstance(module, PackedLinear)]
        self.captured = self.device.type == "cuda" and all(gemv.available(one.stored, batch) for one in packed)
        vocabulary = model.get_input_embeddings().num_embeddings
        generator = torch.Generator().manual_seed(0)
        self.prompt = torch.randint(vocabulary, (batch, length), generator=generator).to(self.device)
        self.token = self.prompt[:, :1].clone()
        self._past: Any = None
        self._write = self._capture() if self.captured else self._step

    def run(self) -> list[float]:
        """The seconds of reading the prompt, and of each token that is written after it."""
        self._begin()
        steps = [self._read, *self.tokens * [self._write]]
        return [clock.computing_seconds(step, self.device) for step in steps]

    def _begin(self) -> None:
        if not self.static:
            self._past = DynamicCache(config=self.model.config)
        elif self._past is None:
            room = self.length + max(self.tokens, 2)  # a step runs once more, and is captured
            self._past = StaticCache(self.model.config, max_cache_len=room)
        else:
            self._past.reset()

    def _read(self) -> None:
        self._forward(self.prompt)

    def _step(self) -> None:
        self._forward(self.token)

    def _forward(self, ids: Tensor) -> None:
        made = self.model(input_ids=ids, past_key_values=self._past, use_cache=True, logits_to_keep=1)
        self.token.copy_(made.logits[:, -1:].argmax(-1))

    def _capture(self) -> Any:
        """Replays what a token takes."""
        self._begin()
        self._read()
        return clock.captured([self._step])
