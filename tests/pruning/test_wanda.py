import pytest
import torch

from lors_cli.pruning import magnitude, wanda
from lors_cli.pruning.statistics import InputNorm
from lors_cli.sparsity.pattern import Pattern


def slow_wanda(weight: torch.Tensor, inputs: torch.Tensor, fraction: float) -> torch.Tensor:
    """Algorithm 1 of the paper, row by row."""
    pruned = weight.clone()
    norms = inputs.norm(dim=0)
    for row in range(len(weight)):
        score = weight[row].abs() * norms
        pruned[row, score.argsort(stable=True)[: int(weight.shape[1] * fraction)]] = 0
    return pruned


def test_wanda_equals_the_paper() -> None:
    weight, inputs = torch.randn(12, 40), torch.randn(300, 40) * torch.rand(40)
    statistic = InputNorm()
    for part in inputs.split(70):
        statistic.add(part.view(1, -1, 40))
    assert statistic.tokens == 300
    torch.testing.assert_close(statistic.value(), inputs.norm(dim=0))
    pruned = wanda.prune(weight, statistic.value(), Pattern(0.5))
    assert torch.equal(pruned, slow_wanda(weight, inputs, 0.5))


def test_wanda_ranks_within_rows_and_magnitude_over_the_matrix() -> None:
    weight = torch.tensor([[1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 30.0, 40.0]])
    assert wanda.prune(weight, torch.ones(4), Pattern(0.5)).count_nonzero(dim=1).tolist() == [2, 2]
    assert magnitude.prune(weight, None, Pattern(0.5)).count_nonzero(dim=1).tolist() == [0, 4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inputs_decide_and_dtype_stays(dtype: torch.dtype) -> None:
    weight = torch.ones(3, 8, dtype=dtype)
    norms = torch.tensor([8.0, 1, 7, 2, 6, 3, 5, 4])
    pruned = wanda.prune(weight, norms, Pattern.parse("2:4"))
    assert pruned.dtype == dtype
    assert pruned[0].nonzero().flatten().tolist() == [0, 2, 4, 6]


def test_a_dead_input_goes_first_and_a_zero_row_is_no_problem() -> None:
    weight, norms = torch.randn(4, 16), torch.ones(16)
    norms[5] = 0
    weight[2] = 0
    pruned = wanda.prune(weight, norms, Pattern(0.25))
    assert pruned[:, 5].count_nonzero() == 0
    assert pruned[[0, 1, 3]].count_nonzero(dim=1).tolist() == [12, 12, 12]
