"""What the tests of the sequential engine share."""

from pathlib import Path

import torch
from torch import Tensor

from lors_cli.models import load, weights
from lors_cli.sequential.blocks import Blocks
from lors_cli.sequential.loop import BlockLoop
from lors_cli.sequential.record import Record
from lors_cli.sequential.states import States

# The linears of a Llama block that share an input, in the order of the block.
GROUPS = [
    ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    ["self_attn.o_proj"],
    ["mlp.gate_proj", "mlp.up_proj"],
    ["mlp.down_proj"],
]


def make_loop(directory: Path, windows: dict[int, Tensor], scratch: Path) -> BlockLoop:
    """A loop over the pico model in `directory`."""
    skeleton, cpu = load.skeleton(directory), torch.device("cpu")
    blocks = Blocks(skeleton, weights.open_weights(directory, skeleton, "model"), torch.float32, cpu)
    states = States(scratch, list(windows), (windows[0].shape[1], 32), torch.float32, cpu)
    return BlockLoop(blocks, windows, states, "host", Record(scratch))
