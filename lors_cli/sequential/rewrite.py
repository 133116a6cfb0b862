"""A model written anew, block by block: what pruning and quantising have in common."""

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lors_cli import processes
from lors_cli.artifacts import publish, sealed
from lors_cli.artifacts.shard_writer import ShardWriter
from lors_cli.errors import LorsError
from lors_cli.models import linears, load
from lors_cli.models.weights import Weights
from lors_cli.quantization import stored
from lors_cli.quantization.grid import Grid
from lors_cli.quantization.stored import Quantized
from lors_cli.sequential.blocks import Blocks
from lors_cli.sequential.loop import BlockLoop
from lors_cli.sequential.record import Record
from lors_cli.sequential.states import States
from lors_cli.sparsity import mask


class Rewriting:
    """Writes the model of `skeleton` and `checkpoint` anew, on the calibration `tokens`, (windows, length)."""

    phase: ClassVar[str]  # of the blocks, which is also what the command is called

    skeleton: PreTrainedModel
    checkpoint: Weights
    tokens: Tensor | None
    device: torch.device
    placement: str

    def run(self, partial: Path) -> Record:
        """Write the weights into `partial`, or go on with what an interrupted run left there.

        Returns:
            what the blocks of each phase came to.

        """
        layout = load.layout(self.skeleton)
        scratch = publish.scratch(partial)
        dtype = next(iter(layout.values())).dtype
        self.blocks = Blocks(self.skeleton, self.checkpoint, dtype, self.device)
        record = Record(scratch, sealed.owner(scratch))
        going_on = bool(record.done(self.phase))
        self.writer = self._writer(partial, layout, going_on=going_on) if processes.rank() == 0 else None
        lost = self.writer and going_on and (self.writer.lost or self.writer.damage(record.written))
        if reason := processes.agree(lost):
            record.begin_again(self.phase, reason)
        self.loop = self._loop(scratch, dtype, record)
        try:
            if self.writer:  # first, because what is wrong with them should not come out last
                self._copy_others(layout, self.writer)
            self._take_blocks(record)
            if self.writer and (reason := self.writer.damage({**record.written, **self.writer.digests})):
                raise LorsError(f"{reason}: it was damaged since; the same command makes the blocks again")
        except BaseException:
            if record.nothing_done():
                self.loop.forget()
            raise
        return record

    @property
    def grids(self) -> dict[str, Grid]:
        """The linears that are written as whole numbers, by their full names, each with its grid."""
        return {}

    def _take_blocks(self, record: Record) -> None:
        raise NotImplementedError

    def _writer(self, partial: Path, layout: dict[str, Tensor], *, going_on: bool) -> ShardWriter:
        """What writes the files: with the tensors of `layout`, and those of quantised weights in place of these."""
        planned: dict[str, Tensor] = {}
        names = dict(self.checkpoint.written)
        for name, tensor in layout.items():
            grid = self.grids.get(name.removesuffix(".weight"))
            if grid is None:
                planned[name] = tensor
                continue
            parts = stored.layout((tensor.shape[0], tensor.shape[1]), grid, tensor.dtype)
            for part, (shape, dtype) in parts.items():
                own = f"{name.removesuffix('weight')}{part}"
                planned[own] = torch.empty(shape, dtype=dtype, device="meta")
                names[own] = f"{names[name].removesuffix('weight')}{part}"
        return ShardWriter(partial, planned, written=names, going_on=going_on)

    def _loop(self, scratch: Path, dtype: torch.dtype, record: Record) -> BlockLoop:
        if self.tokens is None:
            return BlockLoop(self.blocks, {}, None, self.placement, record)
        ours = range(len(self.tokens))[processes.rank() :: processes.count()]
        states = self._states(scratch, ours, dtype)
        # one window at a time, as the published codes do: a batch would round otherwise
        windows = {window: self.tokens[window : window + 1].to(self.device) for window in ours}
        return BlockLoop(self.blocks, windows, states, self.placement, record)

    def _states(self, scratch: Path, windows: range, dtype: torch.dtype, *name: str, durable: bool = True) -> States:
        """Room for the states of the calibration `windows` of this process."""
        length = self.tokens.shape[1] if self.tokens is not None else 0
        shape = length, self.skeleton.config.get_text_config().hidden_size
        return States(scratch, windows, shape, dtype, self.device, *name, durable=durable)

    def _linears(self, index: int, block: nn.Module, chosen: Any) -> dict[str, nn.Linear]:
        """The linears of the block that are among the `chosen` full names."""
        prefix = f"{self.blocks.prefix}.{index}"
        return {name: one for name, one in linears.block_linears(block).items() if f"{prefix}.{name}" in chosen}

    def _write(self, index: int, block: nn.Module, quantized: dict[str, Quantized]) -> None:
        """Write the block, of which some linears are `quantized`, by their full names."""
        if not self.writer:
            return
        for name, tensor in block.state_dict().items():
            full = f"{self.blocks.prefix}.{index}.{name}"
            if one := quantized.get(full.removesuffix(".weight")):
                for part, content in stored.to_tensors(one).items():
                    self.writer.write(f"{full.removesuffix('weight')}{part}", content)
            else:
                self.writer.write(full, tensor)

    def _flush(self, index: int) -> dict[str, str]:
        return self.writer.flush(f"{self.blocks.prefix}.{index}.") if self.writer else {}

    def _copy_others(self, layout: dict[str, Tensor], writer: ShardWriter) -> None:
        """Copy what no block holds: embeddings, the last norm, the head."""
        for name, planned in layout.items():
            if not name.startswith(f"{self.blocks.prefix}."):
                tensor = self.checkpoint.tensor(name).to(planned.dtype)
                if not mask.finite(tensor):
                    raise LorsError(f"{name}: NaN or infinity in its weights; check the model")
                writer.write(name, tensor)
