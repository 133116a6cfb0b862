import pytest
import torch
from torch import nn

from lors_cli.pruning.statistics import InputNorm
from lors_cli.sequential.gather import Input
from lors_cli.sequential.profile import outliers

SHAPES = {"q": (8, 8), "k": (8, 4), "up": (8, 12), "down": (12, 8)}
SHARED = [["q", "k"], ["up"], ["down"]]


def make(dtype: torch.dtype = torch.float32) -> tuple[dict[str, nn.Linear], list[Input], dict[str, list[list[float]]]]:
    """Linears, what was gathered of their inputs, and these inputs as numbers; heavy-tailed, so that some stick out."""
    torch.manual_seed(0)
    block = {name: nn.Linear(*shape, bias=False, dtype=dtype) for name, shape in SHAPES.items()}
    inputs: list[Input] = []
    tokens: dict[str, list[list[float]]] = {}
    for names in SHARED:
        norm = InputNorm()
        x = torch.randn(3, 10, SHAPES[names[0]][0], dtype=dtype) * torch.randn(SHAPES[names[0]][0]).exp().to(dtype)
        for window in x.split(1):
            norm.add(window)
        inputs.append(Input(names, {"input_norm": norm}, x))
        tokens |= {name: x.flatten(0, 1).tolist() for name in names}
    return block, inputs, tokens


@pytest.mark.parametrize("times", [0.5, 1, 2, 3, 5, 7, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outliers_are_counted_over_all_linears_of_the_block(times: float, dtype: torch.dtype) -> None:
    block, inputs, tokens = make(dtype)
    scores = []
    for name, linear in block.items():
        for row in linear.weight.tolist():
            for column, weight in enumerate(row):
                norm = sum(token[column] ** 2 for token in tokens[name]) ** 0.5
                scores.append(abs(weight) * norm)
    mean = sum(scores) / len(scores)
    expected = sum(score > times * mean for score in scores) / len(scores)
    assert outliers(block, inputs, times) == {"outliers": expected}
    assert (expected > 0) == (times < 10)


def test_linears_that_are_not_in_an_input_do_not_count() -> None:
    block, inputs, _ = make()
    assert outliers(block, inputs[:2], 3) == outliers({name: block[name] for name in ("q", "k", "up")}, inputs[:2], 3)
    assert outliers(block, inputs[:2], 3) != outliers(block, inputs, 3)


def test_nothing_is_changed() -> None:
    block, inputs, _ = make()
    before = {name: linear.weight.clone() for name, linear in block.items()}
    norms = [shared.statistics["input_norm"].value().clone() for shared in inputs]
    first = outliers(block, inputs, 3)
    assert outliers(block, inputs, 3) == first
    assert all(torch.equal(linear.weight, before[name]) for name, linear in block.items())
    assert all(
        torch.equal(shared.statistics["input_norm"].value(), norm) for shared, norm in zip(inputs, norms, strict=True)
    )
