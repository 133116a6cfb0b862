"""A model directory's decoder blocks, one at a time: read from the shards, used, freed; the next one is read ahead."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lors_cli.errors import LorsError
from lors_cli.models.linears import find_blocks
from lors_cli.models.weights import Weights
from lors_cli.sparsity import mask


class Blocks:
    """The blocks of `skeleton`, whose parameters are on the meta device and whose values `checkpoint` has.

    At most two blocks are in memory: the loaded one and the next.
    """

    def __init__(
        self, skeleton: PreTrainedModel, checkpoint: Weights, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.model = skeleton
        self.prefix, self._list = find_blocks(skeleton)
        self._checkpoint, self.dtype, self._device = checkpoint, dtype, device
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
        self._ahead: dict[int, Future[dict[str, Tensor]]] = {}

    def __len__(self) -> int:
        return len(self._list)

    @contextmanager
    def loaded(self, index: int) -> Iterator[nn.Module]:
        """Block `index` with its weights on the device; freed afterwards.

        Raises:
            LorsError: a weight is NaN or infinite.

        """
        block = self._list[index]
        stored = (self._ahead.pop(index, None) or self._reader.submit(self._read, index)).result()
        if index + 1 < len(self):
            self._ahead[index + 1] = self._reader.submit(self._read, index + 1)
        with self._filled(block, self._placed(index, stored)):
            yield block

    def _read(self, index: int) -> dict[str, Tensor]:
        """The tensors of block `index` as they are stored; runs in the reader's thread."""
        names = self._list[index].state_dict()
        return {name: self._checkpoint.tensor(f"{self.prefix}.{index}.{name}") for name in names}

    def _placed(self, index: int, content: dict[str, Tensor]) -> dict[str, Tensor]:
        """Move what was read to the device and give up the caller's copy."""
        placed = {}
        for name, planned in self._list[index].state_dict().items():
            placed[name] = content.pop(name).to(self._device, planned.dtype)
        for name, tensor in placed.items():
            if not mask.finite(tensor):
                full = f"{self.prefix}.{index}.{name}"
                raise LorsError(f"{full}: NaN or infinity in its weights; check the model, or use dtype: float32")
        return placed

    @contextmanager
    def _filled(self, module: nn.Module, content: dict[str, Tensor]) -> Iterator[None]:
        """Give `module` the tensors of `content` on the device, and take them away again."""
        empty = {name: tensor.to("meta") for name, tensor in module.state_dict().items()}
        module.load_state_dict(content, assign=True)
        content.clear()  # so that a weight is freed when it is replaced by its pruned one
        for part in module.modules():  # what no file holds, such as rotary frequencies
            for name, buffer in part.named_buffers(recurse=False):
                part._buffers[name] = buffer.to(self._device)
        try:
            yield
        finally:
            module.load_state_dict(empty, assign=True)

    @contextmanager
    def embeddings(self) -> Iterator[None]:
        """What lies outside the blocks, apart from the head, with its weights on the device; freed afterwards."""
        head = self.model.get_output_embeddings()
        outside = [
            module
            for name, module in self.model.named_modules()
            if not name.startswith(f"{self.prefix}.") and module is not head
        ]
        emptied: list[tuple[nn.Module, str, nn.Parameter]] = []
        names = {id(module): name for name, module in self.model.named_modules()}
        for module in outside:
            for name, parameter in list(module.named_parameters(recurse=False)):
                value = self._checkpoint.tensor(f"{names[id(module)]}.{name}".lstrip("."))
                # on the CPU and as stored it stays memory-mapped: only the rows of the tokens at hand are read
                module._parameters[name] = nn.Parameter(value.to(self._device, parameter.dtype), requires_grad=False)
                emptied.append((module, name, parameter))
            for name, buffer in module.named_buffers(recurse=False):
                if name not in module._non_persistent_buffers_set:  # the file has it, as it was trained
                    buffer = self._checkpoint.tensor(f"{names[id(module)]}.{name}".lstrip(".")).to(buffer.dtype)
                module._buffers[name] = buffer.to(self._device)
        try:
            yield
        finally:
            for module, name, parameter in emptied:
                module._parameters[name] = parameter
