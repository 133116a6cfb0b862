"""The loop over the blocks of the pico model: what each is given, and what a later loop goes on from."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from lors_cli.errors import LorsError
from lors_cli.models import linears, load, weights
from lors_cli.sequential.blocks import Blocks
from lors_cli.sequential.loop import BlockLoop
from lors_cli.sequential.record import Record
from tests.sequential.common import make_loop

WINDOWS = dict(enumerate(torch.arange(48).view(3, 1, 16)))


@torch.no_grad()
def whole_model(directory: Path) -> list[list[Tensor]]:
    """The output states of each block, by window."""
    model = AutoModelForCausalLM.from_pretrained(directory)
    outputs: list[list[Tensor]] = []
    for block in linears.find_blocks(model)[1]:
        seen: list[Tensor] = []
        outputs.append(seen)
        block.register_forward_hook(lambda _, given, out, seen=seen: seen.append(out))
    for ids in WINDOWS.values():
        model(ids)
    return outputs


def test_each_block_sees_the_states_of_the_one_before(dense: Path, tmp_path: Path) -> None:
    """Also when a second loop goes on where the first one was stopped; what is flushed is flushed before the record."""
    expected, events = whole_model(dense), []

    def visit(index: int, block: nn.Module) -> str:
        if loop is first and index == 1:
            raise ZeroDivisionError
        for window, ids in WINDOWS.items():
            with torch.no_grad():
                torch.testing.assert_close(loop.forward(block, window, ""), expected[index][window].view(1, 16, 32))
            assert ids.shape == (1, 16)
        loop.advance(block)
        events.append(f"visit {index}")
        return f"facts {index}"

    def flush(index: int) -> dict[str, str]:
        events.append(f"flush {index}")
        assert len(Record(tmp_path).done("phase")) == index
        return {f"tensor {index}": "digest"}

    loop = first = make_loop(dense, WINDOWS, tmp_path)
    with pytest.raises(ZeroDivisionError):
        loop.run("phase", visit, 2, flush)
    assert Record(tmp_path).done("phase") == ["facts 0"]
    loop = make_loop(dense, WINDOWS, tmp_path)
    loop.run("phase", visit, 2, flush)
    assert events == ["visit 0", "flush 0", "visit 1", "flush 1"]
    assert Record(tmp_path).done("phase") == ["facts 0", "facts 1"]
    assert Record(tmp_path).written == {"tensor 0": "digest", "tensor 1": "digest"}
    loop.run("phase", visit, 2, flush)  # nothing is left to do
    assert len(events) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["progress.json", "states-0", "states-1"]
    loop.forget()
    assert [path.name for path in tmp_path.iterdir()] == ["progress.json"]


def test_states_that_are_not_finite_name_the_block(dense: Path, tmp_path: Path) -> None:
    loop = make_loop(dense, WINDOWS, tmp_path)

    def visit(index: int, block: nn.Module) -> None:
        for linear in linears.block_linears(block).values():
            linear.weight.data *= torch.inf
        loop.advance(block)

    with pytest.raises(LorsError, match=r"^model\.layers\.0: NaN or infinity in its output"):
        loop.run("phase", visit, 2)


def test_without_windows_the_blocks_are_only_visited(dense: Path, tmp_path: Path) -> None:
    skeleton = load.skeleton(dense)
    blocks = Blocks(skeleton, weights.open_weights(dense, skeleton, "model"), torch.float32, torch.device("cpu"))
    visited: list[int] = []
    BlockLoop(blocks, {}, None, "host", Record(tmp_path)).run("phase", lambda index, _: visited.append(index), 1)
    assert visited == [0, 1]


def test_a_linear_that_no_token_reaches_is_named(dense: Path, tmp_path: Path) -> None:
    loop = make_loop(dense, WINDOWS, tmp_path)

    def visit(index: int, block: nn.Module) -> None:
        loop.gather({**linears.block_linears(block), "idle": nn.Linear(2, 2)}, block, ["input_norm"])

    with pytest.raises(LorsError, match=r"^model\.layers\.0\.idle: no calibration token reached it"):
        loop.run("phase", visit, 1)
