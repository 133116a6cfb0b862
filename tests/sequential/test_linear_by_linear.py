"""``sequential: linear`` against running the whole block again before each input."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lors_cli.config.methods import complete
from lors_cli.config.prune import Prune
from lors_cli.errors import LorsError
from lors_cli.models import linears, load
from lors_cli.pruning.statistics import STATISTICS
from lors_cli.sequential import linear_by_linear, prune_linears, replay
from lors_cli.sequential.gather import Input, gather
from lors_cli.sequential.recipe import Recipe, build
from tests.sequential.common import GROUPS, make_loop

WINDOWS, LENGTH = 4, 24
Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def windows() -> dict[int, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {window: torch.randint(1, 384, (1, LENGTH), generator=generator) for window in range(WINDOWS)}


def make_recipe(directory: Path, method: str, sparsity: object, skip: str | None) -> Recipe:
    section = complete(Prune).model_validate(
        {
            "method": method,
            "sparsity": sparsity,
            "sequential": "linear",
            "calibration": {"dataset": "python-topics"},
            "overrides": [{"match": skip, "skip": True}] if skip else [],
        }
    )
    return build(section, linears.all_linears(load.skeleton(directory)), None)


def linear_by_linear_run(
    directory: Path, windows: dict[int, Tensor], scratch: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> tuple[Weights, list[list[str]], list[list[Tensor]]]:
    """The pruned weights, the inputs as they were reached, and the output states of each block but the last."""
    loop = make_loop(directory, windows, scratch)
    weights: Weights = {}
    reached: list[list[str]] = []
    kept: dict[int, list[Tensor]] = {}
    keep = loop.keep

    def visit(index: int, block: nn.Module) -> list[str]:
        prefix = f"{loop.blocks.prefix}.{index}"
        chosen = {k: v for k, v in linears.block_linears(block).items() if f"{prefix}.{k}" in recipe.targets}

        def prune(shared: Input) -> None:
            reached.append(shared.linears)
            assert shared.tokens == WINDOWS * LENGTH
            prune_linears.prune(chosen, prefix, [shared], recipe)

        def note(window: int, states: Tensor) -> None:
            kept.setdefault(index, []).append(states)
            keep(window, states)

        monkeypatch.setattr(loop, "keep", note)
        linear_by_linear.run(chosen, recipe.statistics, loop, block, prune)
        weights.update({f"{prefix}.{name}": linear.weight.clone() for name, linear in chosen.items()})
        assert not any(linear._forward_pre_hooks for linear in chosen.values())
        return []

    loop.run("prune", visit, 1)
    return weights, reached, [kept[index] for index in sorted(kept)]


@torch.no_grad()
def one_by_one(
    directory: Path, windows: dict[int, Tensor], recipe: Recipe
) -> tuple[Weights, list[list[str]], list[list[Tensor]]]:
    """The obvious way: for each input in turn, run the block as pruned so far on all windows, prune what gets it."""
    model = load.load_model(directory, "float32", torch.device("cpu"))
    weights, outputs, reached = {}, [], []
    states: dict[int, Tensor] = {}
    calls = replay.capture(model, windows, states.__setitem__)
    prefix, blocks = linears.find_blocks(model)
    method, options = recipe.method, recipe.options(recipe.method)
    for index, block in enumerate(blocks):
        for group in GROUPS:
            names = [name for name in group if f"{prefix}.{index}.{name}" in recipe.targets]
            if not names:
                continue
            reached.append(names)
            statistic: Any = STATISTICS[recipe.statistics[0]]()
            hook = block.get_submodule(names[0]).register_forward_pre_hook(lambda _, x, s=statistic: s.add(x[0]))
            for window in windows:
                calls.run(block, index, window, states[window])
            hook.remove()
            value = method.prepare(statistic.value(), options)
            for name in names:
                full = f"{prefix}.{index}.{name}"
                linear: Any = block.get_submodule(name)
                linear.weight.data = method.prune(linear.weight.data, value, recipe.targets[full], options)
                weights[full] = linear.weight.clone()
        states = {window: calls.run(block, index, window, states[window]) for window in windows}
        outputs.append(list(states.values()))
    return weights, reached, outputs


@pytest.mark.parametrize("skip", [None, "*.q_proj", "*.down_proj", "model.layers.0.self_attn.*"])
@pytest.mark.parametrize(("method", "sparsity"), [("wanda", "2:4"), ("sparsegpt", 0.5), ("ria", 0.7)])
def test_equals_running_the_block_again_before_each_input(
    dense: Path,
    windows: dict[int, Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    sparsity: object,
    skip: str | None,
) -> None:
    recipe = make_recipe(dense, method, sparsity, skip)
    got, reached, outputs = linear_by_linear_run(dense, windows, tmp_path, recipe, monkeypatch)
    expected, order, states = one_by_one(dense, windows, recipe)
    assert reached == order
    assert got.keys() == expected.keys() == recipe.targets.keys()
    for name, weight in expected.items():
        assert torch.equal(got[name] != 0, weight != 0), name
        assert torch.equal(got[name], weight), name
    assert len(outputs) == len(states) - 1 == 1  # nothing needs the states after the last block
    assert all(torch.equal(a, b) for a, b in zip(outputs[0], states[0], strict=True))


def test_is_not_the_same_as_pruning_by_the_dense_block(
    dense: Path, windows: dict[int, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the test above would pass without doing what it says."""
    recipe = make_recipe(dense, "sparsegpt", "2:4", None)
    got, _, _ = linear_by_linear_run(dense, windows, tmp_path, recipe, monkeypatch)
    again = make_loop(dense, windows, tmp_path)
    seen: Weights = {}

    def visit(index: int, block: nn.Module) -> list[str]:
        prefix, by_name = f"{again.blocks.prefix}.{index}", linears.block_linears(block)
        prune_linears.prune(by_name, prefix, again.gather(by_name, block, recipe.statistics), recipe)
        seen.update({f"{prefix}.{name}": linear.weight.clone() for name, linear in by_name.items()})
        again.advance(block)
        return []

    again.run("by block", visit, 2)
    first = "model.layers.0."
    assert all(torch.equal(got[first + name], seen[first + name]) for name in GROUPS[0])
    assert not any(torch.equal(got[first + name], seen[first + name]) for group in GROUPS[1:] for name in group)


class Turning(nn.Module):
    """Two linears, `b` before `a` for windows of a positive sum."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        ways = (self.a, self.b) if float(x.sum()) < 0 else (self.b, self.a)
        output: Tensor = ways[1](ways[0](x))
        return output


class FakeLoop:
    """What `linear_by_linear` asks of a loop."""

    def __init__(self, windows: dict[int, Tensor]) -> None:
        self.windows, self.kept = windows, dict[int, Tensor]()

    def gather(self, chosen: dict[str, nn.Linear], block: nn.Module, kinds: list[str], windows: list[int]) -> Any:
        return gather(chosen, kinds, windows, lambda window: self.forward(block, window, ""))

    def forward(self, block: nn.Module, window: int, what: str) -> Tensor:
        output: Tensor = block(self.windows[window])
        return output

    def advance(self, block: nn.Module, before_each: Callable[[], object]) -> None:
        for window in self.windows:
            before_each()
            self.kept[window] = self.forward(block, window, "")


def take(signs: str, prune: Callable[[Input], None] = lambda _: None) -> FakeLoop:
    block = Turning()
    loop = FakeLoop({window: torch.full((1, 3, 4), float(sign + "1")) for window, sign in enumerate(signs)})
    both = {"a": block.a, "b": block.b}
    linear_by_linear.run(both, ["input_norm"], loop, block, prune)  # type: ignore[arg-type]
    return loop


@pytest.mark.parametrize("signs", ["-+", "+-", "--+", "+++-"])
def test_windows_that_take_different_ways_are_an_error(signs: str) -> None:
    with pytest.raises(LorsError, match="the windows took different ways through the block"):
        take(signs)


def test_every_window_goes_on_to_its_end() -> None:
    places: list[str] = []
    loop = take("+++", lambda shared: places.extend(shared.linears))
    assert sorted(loop.kept) == [0, 1, 2]
    assert places == ["b", "a"]


def test_an_error_while_pruning_leaves_no_hook(dense: Path, windows: dict[int, Tensor], tmp_path: Path) -> None:
    loop = make_loop(dense, windows, tmp_path)
    blocks: list[nn.Module] = []

    def fail(shared: Input) -> None:
        if "mlp.up_proj" in shared.linears:
            raise LorsError("as planned")

    def visit(index: int, block: nn.Module) -> None:
        blocks.append(block)
        by_name = linears.block_linears(block)
        linear_by_linear.run(by_name, ["hessian"], loop, block, fail)

    with pytest.raises(LorsError, match="as planned"):
        loop.run("prune", visit, 1)
    assert not any(linear._forward_pre_hooks for linear in linears.block_linears(blocks[0]).values())
    assert all(parameter.is_meta for parameter in blocks[0].parameters())
