from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from lors_cli.errors import LorsError
from lors_cli.models import linears
from lors_cli.pruning import statistics
from lors_cli.sequential import replay
from lors_cli.sequential.gather import PROBE_TOKENS, Input, gather
from tests.sequential.common import GROUPS
from tests.sequential.test_replay import COMMON

WINDOWS, LENGTH = 5, 12
Run = Callable[[int], Tensor]


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    made: nn.Module = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **COMMON)).eval()
    return made


@pytest.fixture
def block(model: nn.Module) -> nn.Module:
    return linears.find_blocks(model)[1][0]


@pytest.fixture
def run(model: nn.Module, block: nn.Module) -> Run:
    torch.manual_seed(1)
    states: dict[int, Tensor] = {}
    ids = {window: torch.randint(1, 64, (1, LENGTH)) for window in range(WINDOWS)}
    calls = replay.capture(model, ids, states.__setitem__)
    return lambda window: calls.run(block, 0, window, states[window])


@contextmanager
def outputs_counted(block: nn.Module) -> Iterator[Counter[str]]:
    """How often each module of `block` finishes, "" being itself."""
    counts: Counter[str] = Counter()
    handles = [
        module.register_forward_hook(lambda *_, name=name: counts.update([name]))
        for name, module in block.named_modules()
    ]
    yield counts
    for handle in handles:
        handle.remove()


def direct(block: nn.Module, run: Run) -> dict[str, list[Tensor]]:
    """The input of every linear in every window, (length, C) float64, by running the block to its end."""
    seen: dict[str, list[Tensor]] = {name: [] for name in linears.block_linears(block)}
    handles = [
        linear.register_forward_pre_hook(lambda _, given, name=name: seen[name].append(given[0][0].double()))
        for name, linear in linears.block_linears(block).items()
    ]
    with torch.no_grad():
        for window in range(WINDOWS):
            run(window)
    for handle in handles:
        handle.remove()
    return seen


def test_linears_with_the_same_input_share_one_statistic(
    block: nn.Module, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    added: list[Tensor] = []

    class Counted(statistics.InputNorm):
        def add(self, inputs: Tensor) -> None:
            added.append(inputs)
            super().add(inputs)

    monkeypatch.setitem(statistics.STATISTICS, "input_norm", Counted)
    inputs = gather(linears.block_linears(block), ["input_norm"], range(WINDOWS), run)
    assert [shared.linears for shared in inputs] == GROUPS
    assert len(added) == len(GROUPS) * WINDOWS
    assert len({id(shared.statistics["input_norm"]) for shared in inputs}) == len(GROUPS)
    assert [shared.tokens for shared in inputs] == [WINDOWS * LENGTH] * len(GROUPS)


def test_the_statistics_are_those_of_the_inputs(block: nn.Module, run: Run) -> None:
    inputs = gather(linears.block_linears(block), ["input_norm", "hessian", "input_moments"], range(WINDOWS), run)
    seen = direct(block, run)
    for shared in inputs:
        for name in shared.linears:
            x = torch.cat(seen[name])
            near: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-6, "check_dtype": False}
            torch.testing.assert_close(shared.statistics["input_norm"].value(), x.square().sum(0).sqrt(), **near)
            torch.testing.assert_close(shared.statistics["hessian"].value(), 2 * x.T @ x / WINDOWS, **near)
            moments = shared.statistics["input_moments"].value()
            torch.testing.assert_close(moments.norm, x.square().sum(0).sqrt(), **near)
            torch.testing.assert_close(moments.sum, x.sum(0) / WINDOWS, **near)
            variance = torch.stack([window.var(0, correction=0) for window in seen[name]]).mean(0)
            torch.testing.assert_close(moments.variance, variance, **near)
            assert torch.equal(shared.probe.double(), seen[name][-1])


def test_a_pass_ends_at_the_last_linear(block: nn.Module, run: Run) -> None:
    with outputs_counted(block) as counts:
        gather(linears.block_linears(block), ["input_norm"], range(WINDOWS), run)
    for name in [name for group in GROUPS[:-1] for name in group]:
        assert counts[name] == WINDOWS, name
    # the first window tells which linear is the last; later ones are not taken through it
    assert [counts[name] for name in ("mlp.down_proj", "mlp", "")] == [1, 1, 1]


def test_a_whole_pass_goes_to_the_end(block: nn.Module, run: Run) -> None:
    outputs: dict[int, Tensor] = {}
    chosen = linears.block_linears(block)
    with outputs_counted(block) as counts:
        gather(chosen, ["input_norm"], range(WINDOWS), lambda w: outputs.__setitem__(w, run(w)), whole=True)
    assert {counts[name] for name in (*chosen, "mlp", "")} == {WINDOWS}
    with torch.no_grad():
        assert all(torch.equal(outputs[window], run(window)) for window in range(WINDOWS))


def test_skipped_linears_are_not_gathered(block: nn.Module, run: Run) -> None:
    by_name = linears.block_linears(block)
    kept = {name: by_name[name] for name in ("self_attn.k_proj", "self_attn.o_proj", "self_attn.v_proj")}
    with outputs_counted(block) as counts:
        inputs = gather(kept, ["hessian"], range(WINDOWS), run)
    assert [shared.linears for shared in inputs] == [["self_attn.k_proj", "self_attn.v_proj"], ["self_attn.o_proj"]]
    assert [counts[name] for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj")] == [WINDOWS, 1, 1]
    x = torch.cat(direct(block, run)["self_attn.v_proj"])
    torch.testing.assert_close(
        inputs[0].statistics["hessian"].value(), 2 * x.T @ x / WINDOWS, rtol=1e-5, atol=1e-6, check_dtype=False
    )


def test_no_hook_is_left(block: nn.Module, run: Run) -> None:
    by_name = linears.block_linears(block)
    gather(by_name, ["input_norm"], range(2), run)
    with pytest.raises(ZeroDivisionError):
        gather(by_name, ["input_norm"], range(2), lambda window: run(window) / (1 // window - 1))
    assert not any(linear._forward_pre_hooks for linear in by_name.values())


class Branching(nn.Module):
    """Two linears; which tensors they get, and in which order, is told from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor, way: str) -> None:
        other = x if way.islower() else 2 * x
        for name in way.lower():
            self.get_submodule(name)(x if name == "a" else other)


def gather_ways(*ways: str) -> list[Input]:
    block, x = Branching(), torch.ones(1, 3, 4)
    chosen = {name: block.get_submodule(name) for name in "ab"}
    return gather(chosen, ["input_norm"], range(len(ways)), lambda w: block(x, ways[w]))  # type: ignore[arg-type]


@pytest.mark.parametrize("ways", [("ab", "AB"), ("ab", "ab", "AB"), ("ab", "ba"), ("ba", "AB")])
def test_sharing_that_changes_between_windows_is_an_error(ways: tuple[str, ...]) -> None:
    with pytest.raises(LorsError, match=r"[ab] shares its input with [ab] in some windows only"):
        gather_ways(*ways)


def test_sharing_found_later_changes_nothing() -> None:
    inputs = gather_ways("AB", "ab", "AB")
    assert [shared.linears for shared in inputs] == [["a"], ["b"]]
    squares = [shared.statistics["input_norm"].value().square() for shared in inputs]
    torch.testing.assert_close(squares, [torch.full((4,), 9.0), torch.full((4,), 3.0 * (4 + 1 + 4))])


def test_a_linear_that_no_window_reaches_is_in_no_input() -> None:
    assert [shared.linears for shared in gather_ways("a", "a")] == [["a"]]


class InPlace(nn.Module):
    """Two linears that get one tensor, which changes in between, as does the output of the first and what comes in."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        y += x
        x.mul_(3)
        z: Tensor = self.b(x)
        x.zero_()
        return z.add_(y)


def test_a_tensor_that_changes_in_place_is_another_input() -> None:
    block = InPlace()
    x = torch.randn(3, 1, 5, 4)
    inputs = gather(linears.block_linears(block), ["input_norm"], range(3), lambda w: block(x[w].clone()))
    assert [shared.linears for shared in inputs] == [["a"], ["b"]]
    norm = x.flatten(0, 2).norm(dim=0)
    torch.testing.assert_close(inputs[0].statistics["input_norm"].value(), norm)
    torch.testing.assert_close(inputs[1].statistics["input_norm"].value(), 3 * norm)
    assert torch.equal(inputs[0].probe, x[-1, 0])
    assert torch.equal(inputs[1].probe, 3 * x[-1, 0])


@pytest.mark.parametrize("length", [1, 127, 128, 129, 255, 300, 1000])
def test_the_probe_is_some_of_the_last_tokens(length: int) -> None:
    last = torch.arange(length)[None, :, None].expand(1, length, 3).float()
    shared = Input(["a"], {}, last)
    shared.add(last)
    probe = shared.probe
    assert probe.shape == (min(length, PROBE_TOKENS), 3)
    chosen = probe[:, 0].long().tolist()
    assert chosen == sorted(set(chosen))
    assert set(chosen) <= set(range(length))
    assert chosen[-1] >= length / 2 - 1  # from all over the window


def test_an_input_permutes_all_that_it_holds() -> None:
    x, index = torch.randint(-4, 5, (1, 9, 6)).float(), torch.tensor([3, 1, 5, 0, 4, 2])
    kinds = ["input_norm", "hessian", "input_moments"]
    first, second = (Input(["a"], {kind: statistics.STATISTICS[kind]() for kind in kinds}, x) for _ in range(2))
    first.add(x)
    first.permute(index)
    second.add(x[..., index].clone())
    assert torch.equal(first.probe, second.probe)
    for kind in kinds:
        torch.testing.assert_close(
            first.statistics[kind].value(), second.statistics[kind].value(), rtol=1e-5, atol=1e-6
        )
