"""What a pruned model is brought back to, against whole models in float64."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import Result

from lors_cli.data import builtin
from lors_cli.models import linears
from lors_cli.sequential.loop import BlockLoop
from lors_cli.sequential.states import States
from lors_cli.sequential.targets import Targets
from tests.sequential.common import make_loop

CPU = torch.device("cpu")
WINDOWS = dict(enumerate(torch.arange(48).view(3, 1, 16)))


def inputs(model: nn.Module, ids: Tensor, block: int) -> dict[str, Tensor]:
    """What the linears of a block get, (tokens, C) in float64."""
    seen: dict[str, Tensor] = {}
    _, blocks = linears.find_blocks(model)
    for name, linear in linears.block_linears(blocks[block]).items():
        linear.register_forward_pre_hook(lambda _, given, name=name: seen.update({name: given[0].double()}))
    with torch.no_grad():
        model(ids)
    return {name: x.flatten(0, 1) for name, x in seen.items()}


def test_an_update_fits_the_outputs_on_the_states_that_pruned_blocks_leave(
    lors: Callable[..., Result], write_config: Callable[..., Path], make_model: Callable[..., Path], tmp_path: Path
) -> None:
    """Row by row the normal equations of the last block, whose inputs are those of the pruned first block."""
    directory = make_model(tmp_path / "model", initializer_range=0.1)
    exact = {"prune__update_iterations": 100, "prune__update_tolerance": 1e-5, "prune__update_damping": 0.02}
    lors("prune", write_config(model=str(directory), prune__update="least_squares", **exact))
    lors("prune", write_config(model=str(directory)), f"output_dir={tmp_path}/plain")
    text = AutoTokenizer.from_pretrained(directory)("\n\n".join(builtin.texts("train")), add_special_tokens=False)
    ids = torch.tensor(text["input_ids"][: 8 * 32]).view(8, 32)
    dense, mixed = (AutoModelForCausalLM.from_pretrained(directory) for _ in range(2))
    pruned = load_file(tmp_path / "run/pruned/model.safetensors")
    first = {name: tensor for name, tensor in pruned.items() if "layers.0." in name}
    mixed.load_state_dict(first, strict=False)
    entering = inputs(mixed, ids, 1)
    for name, linear in linears.block_linears(dense.model.layers[1]).items():
        x, w = entering[name], linear.weight.detach().double()
        hessian, right = x.T @ x, w @ x.T @ x
        damping = 0.02 * float(hessian.diagonal().mean())
        result = pruned[f"model.layers.1.{name}.weight"].double()
        expected = torch.zeros_like(result)
        for row, kept in enumerate(result != 0):
            system = hessian[kept][:, kept] + damping * torch.eye(int(kept.sum()))
            # Wanda leaves the kept weights as they are, so these are where the damping holds them
            expected[row, kept] = torch.linalg.solve(system, right[row, kept] + damping * w[row, kept])
        torch.testing.assert_close(result, expected, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("placement", ["host", "disk"])
def test_the_dense_stream_is_that_of_the_dense_model(dense: Path, tmp_path: Path, placement: str) -> None:
    """Whatever the visits do to the blocks; another loop goes on with what is on the disk, if it is not damaged."""
    model, expected = AutoModelForCausalLM.from_pretrained(dense), []
    for block in model.model.layers:
        block.register_forward_hook(lambda _, given, out: expected.append(out))
    with torch.no_grad():
        model(torch.cat(list(WINDOWS.values())))

    def targets() -> Targets:
        return Targets(States(tmp_path, list(WINDOWS), (16, 32), torch.float32, CPU, "targets", durable=True))

    def visit(index: int, block: nn.Module) -> None:
        if index == 1 and stop:
            raise ZeroDivisionError
        loop.aim(block)
        for window in WINDOWS:
            torch.testing.assert_close(loop.target(window), expected[index][window, None].detach())
        for linear in linears.block_linears(block).values():
            linear.weight.data = linear.weight * 0.5
        loop.advance(block)

    for stop in (True, False):
        loop = make_loop(dense, WINDOWS, tmp_path)
        loop._placement = placement
        if stop:
            with pytest.raises(ZeroDivisionError):
                loop.run("phase", visit, 1, targets=targets())
        else:
            assert set(loop.record.states) == {*map(str, WINDOWS), *(f"dense {window}" for window in WINDOWS)}
            loop.run("phase", visit, 1, targets=targets())
    loop.forget()
    assert [path.name for path in tmp_path.iterdir()] == ["progress.json"]


def test_targets_of_a_layer_are_on_the_disk_only_where_states_are(dense: Path, tmp_path: Path) -> None:
    for placement in ("host", "disk"):
        scratch = tmp_path / placement
        scratch.mkdir()
        loop = make_loop(dense, WINDOWS, scratch)
        loop._placement = placement
        states = States(scratch, list(WINDOWS), (16, 32), torch.float32, CPU, "targets", durable=False)

        def visit(index: int, block: nn.Module, loop: BlockLoop = loop) -> None:
            loop.aim(block)
            with torch.no_grad():
                for window in WINDOWS:
                    assert torch.equal(loop.target(window), loop.forward(block, window, ""))
            loop.advance(block)

        loop.run("phase", visit, 1, targets=Targets(states))
        found = {path.name for path in scratch.iterdir()} - {"progress.json", "states-0", "states-1"}
        assert found == ({"targets-0", "targets-1"} if placement == "disk" else set())
