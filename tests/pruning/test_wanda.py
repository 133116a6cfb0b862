import pytest
import torch

from lors_cli.errors import LorsError
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


def slow_variant(score: torch.Tensor, sparsity: float) -> torch.Tensor:
    """The published bisection (locuslab/wanda, use_variant), weight by weight; what is removed, bool."""

    def removed(alpha: float) -> torch.Tensor:
        gone = torch.zeros_like(score, dtype=torch.bool)
        for row in range(len(score)):
            total, spent = float(score[row].sum()), 0.0
            for column in score[row].argsort(stable=True):
                spent += float(score[row, column])
                if spent > alpha * total:
                    break
                gone[row, column] = True
        return gone

    alpha, history = 0.4, [0.0, 0.8]
    gone = removed(alpha)
    while abs(float(gone.double().mean()) - sparsity) > 0.001 and history[1] - history[0] >= 0.001:
        if float(gone.double().mean()) > sparsity:
            alpha, history[1] = (alpha + history[0]) / 2, alpha
        else:
            alpha, history[0] = (alpha + history[1]) / 2, alpha
        gone = removed(alpha)
    return gone


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.7])
def test_the_variant_equals_the_published_bisection(sparsity: float) -> None:
    weight, norms = torch.randn(30, 101, dtype=torch.float64), torch.rand(101, dtype=torch.float64)
    weight *= torch.rand(30, 1, dtype=torch.float64) * weight.abs()  # rows of different shape
    norms[7] = 0
    pruned = wanda.prune(weight, norms, Pattern(sparsity), variant=True)
    assert torch.equal(pruned == 0, slow_variant(weight.abs() * norms, sparsity))
    assert len(set(pruned.count_nonzero(dim=1).tolist())) > 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_variant_goes_beyond_the_published_bracket(dtype: torch.dtype) -> None:
    """Equal scores need alpha = sparsity, here 0.9; a few large ones need alpha close to 0, less than 0.001."""
    flat, peaked = torch.ones(4, 1000, dtype=dtype), torch.full((4, 1000), 1e-6, dtype=dtype)
    peaked[:, :100] = 1
    for weight in (flat, peaked):
        pruned = wanda.prune(weight, torch.ones(1000), Pattern(0.9 if weight is flat else 0.5), variant=True)
        assert pruned.dtype == dtype
        assert pruned.count_nonzero() / pruned.numel() == pytest.approx(0.1 if weight is flat else 0.5, abs=0.001)


def test_the_variant_breaks_ties_like_the_others_and_rounds_down() -> None:
    pruned = wanda.prune(torch.ones(2, 7), torch.ones(7), Pattern(0.5), variant=True)
    assert pruned.tolist() == [[1, 1, 1, 1, 0, 0, 0]] * 2


def test_the_variant_copes_with_an_empty_row_and_a_row_where_nothing_fits() -> None:
    weight = torch.rand(50, 40) + 0.5
    weight[3] = 0
    weight[5] = torch.tensor([1.0] + [0.0] * 39)  # its one weight is more than any share
    pruned = wanda.prune(weight, torch.ones(40), Pattern(0.5), variant=True)
    assert pruned[5, 0] == 1
    assert pruned.isfinite().all()
    assert float((pruned == 0).double().mean()) == pytest.approx(0.5, abs=0.001)
    assert torch.equal(wanda.prune(torch.ones(2, 1), torch.ones(1), Pattern(0.5), variant=True), torch.ones(2, 1))


def test_the_variant_is_for_fractions() -> None:
    with pytest.raises(LorsError, match="2:4 fixes"):
        wanda.prune(torch.ones(2, 4), torch.ones(4), Pattern.parse("2:4"), variant=True)
