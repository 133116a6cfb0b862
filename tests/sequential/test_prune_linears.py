"""What happens to the linears of one input, whatever the method."""

from typing import Any

import pytest
import torch
from torch import nn

from lors_cli import pruning
from lors_cli.config.methods import complete
from lors_cli.config.prune import Prune
from lors_cli.errors import LorsError
from lors_cli.pruning import sparsegpt
from lors_cli.pruning.statistics import STATISTICS
from lors_cli.sequential import prune_linears
from lors_cli.sequential.gather import Input
from lors_cli.sequential.recipe import Recipe, build
from lors_cli.sparsity import mask

NAMES = ["q", "k"]
TEXT = {"dataset": "python-topics"}


def linears() -> dict[str, nn.Linear]:
    return {"q": nn.Linear(16, 8, bias=False), "k": nn.Linear(16, 4, bias=False)}


def recipe(by_name: dict[str, nn.Linear], **settings: Any) -> Recipe:
    section = complete(Prune).model_validate({"sparsity": "2:4", "calibration": TEXT, **settings})
    return build(section, {f"block.{name}": linear for name, linear in by_name.items()}, None)


def gathered(made: Recipe, x: torch.Tensor) -> Input:
    shared = Input(list(NAMES), {kind: STATISTICS[kind]() for kind in made.statistics}, x)
    shared.add(x)
    return shared


@pytest.mark.parametrize("method", [name for name, row in pruning.METHODS.items() if not row.reads_mask])
@pytest.mark.parametrize("repair", [None, "dsnot"])
@torch.no_grad()
def test_the_facts_are_those_of_the_weights(method: str, repair: str | None) -> None:
    by_name, x = linears(), torch.randn(1, 40, 16)
    dense = {name: linear.weight.clone() for name, linear in by_name.items()}
    made = recipe(by_name, method=method, repair=repair)
    facts, _ = prune_linears.prune(by_name, "block", [gathered(made, x)], made)
    assert list(facts) == ["block.q", "block.k"]
    for name, linear in by_name.items():
        fact = facts[f"block.{name}"]
        assert mask.detect(linear.weight) == "2:4"
        assert not mask.negative_zeros(linear.weight)
        assert fact["sparsity"] == mask.sparsity(linear.weight) == 0.5
        assert fact["tokens"] == (40 if made.statistics else 0)
        assert (fact["damping"] is not None) == (method == "sparsegpt")
        lost, whole = (x @ (dense[name] - linear.weight).T).norm() ** 2, (x @ dense[name].T).norm() ** 2
        assert fact["error"] == pytest.approx(float(lost / whole), rel=1e-4)


@torch.no_grad()
def test_errors_of_large_and_of_infinite_outputs() -> None:
    x, dense = torch.randn(40, 16), torch.randn(8, 16)
    pruned = dense.where(dense > 0, 0)
    wanted = prune_linears.relative_error("q", dense, pruned, x)
    large = prune_linears.relative_error("q", dense * 2.0**120, pruned * 2.0**120, x)  # its squares overflow
    assert wanted == large == pytest.approx(float(((dense - pruned) @ x.T).norm() / (dense @ x.T).norm()) ** 2)
    assert prune_linears.relative_error("q", dense * 0, dense * 0, x) == 0
    with pytest.raises(LorsError, match="q: NaN or infinity in its outputs"):
        prune_linears.relative_error("q", dense * 1e38, pruned * 1e38, x * 10)


def test_linears_of_one_input_are_solved_as_one_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    """And get what they would get alone: N:M ranks within a row."""
    x = torch.randn(1, 40, 16)
    shapes: list[tuple[int, ...]] = []
    original = sparsegpt.prune

    def counted(weight: torch.Tensor, *args: Any, block_size: int = 128) -> torch.Tensor:
        shapes.append(tuple(weight.shape))
        return original(weight, *args, block_size=block_size)

    monkeypatch.setattr(sparsegpt, "prune", counted)
    together = linears()
    alone = {name: nn.Linear(16, len(linear.weight), bias=False) for name, linear in together.items()}
    for name in NAMES:
        alone[name].load_state_dict(together[name].state_dict())
    made = recipe(together, method="sparsegpt")
    prune_linears.prune(together, "block", [gathered(made, x)], made)
    for name in NAMES:
        shared = gathered(made, x)
        shared.linears = [name]
        prune_linears.prune(alone, "block", [shared], made)
        torch.testing.assert_close(alone[name].weight, together[name].weight)
    assert shapes == [(12, 16), (8, 16), (4, 16)]
    made = recipe(linears(), method="sparsegpt", overrides=[{"match": "k", "sparsity": 0.5}])
    prune_linears.prune(linears(), "block", [gathered(made, x)], made)  # their targets differ
    assert shapes[3:] == [(8, 16), (4, 16)]


def test_what_is_wrong_names_the_linear() -> None:
    by_name = linears()
    made = recipe(by_name, method="wanda")
    with pytest.raises(LorsError, match=r"^block\.q: NaN or infinity in its calibration inputs"):
        prune_linears.prune(by_name, "block", [gathered(made, torch.full((1, 4, 16), torch.nan))], made)
    made = recipe(by_name, method="sparsegpt")
    shared = gathered(made, torch.randn(1, 4, 16))
    shared.statistics["hessian"].mean = -torch.eye(16)
    with pytest.raises(LorsError, match=r"^block\.q: the Hessian is not positive definite"):
        prune_linears.prune(by_name, "block", [shared], made)
