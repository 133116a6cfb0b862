import pytest
import torch
from torch import Tensor

from lors_cli.pruning import ria
from lors_cli.sparsity.mask import holds
from lors_cli.sparsity.pattern import Pattern


def slow_score(weight: Tensor, norms: Tensor, exponent: float) -> Tensor:
    """The paper's definition, weight by weight."""
    size, result = weight.abs(), torch.zeros_like(weight)
    for i in range(size.shape[0]):
        for j in range(size.shape[1]):
            if size[i, j] > 0:
                relative = size[i, j] / sum(size[i, :]) + size[i, j] / sum(size[:, j])
                result[i, j] = relative * norms[j] ** exponent
    return result


@pytest.mark.parametrize("exponent", [0.5, 1.0, 0.0])
def test_score_equals_the_paper(exponent: float) -> None:
    weight, norms = torch.randn(7, 13, dtype=torch.float64), torch.rand(13, dtype=torch.float64) * 9
    torch.testing.assert_close(ria.score(weight, norms, exponent=exponent), slow_score(weight, norms, exponent))


def test_empty_rows_columns_and_inputs_score_zero() -> None:
    weight, norms = torch.randn(5, 8, dtype=torch.float64), torch.rand(8, dtype=torch.float64) + 1
    weight[2], weight[:, 4], norms[6] = 0, 0, 0
    score = ria.score(weight, norms)
    torch.testing.assert_close(score, slow_score(weight, norms, 0.5))
    assert score[2].count_nonzero() == score[:, [4, 6]].count_nonzero() == 0
    assert ria.prune(weight, norms, Pattern(0.5)).isfinite().all()


def test_a_fraction_is_ranked_over_the_whole_matrix_with_an_exact_count() -> None:
    weight, norms = torch.randn(9, 15), torch.rand(15) + 0.1
    pruned = ria.prune(weight, norms, Pattern(0.6))
    gone = slow_score(weight, norms, 0.5).flatten().argsort()[: int(9 * 15 * 0.6)]
    expected = weight.clone().flatten().index_fill(0, gone, 0).view_as(weight)
    assert torch.equal(pruned, expected)
    assert len(set(pruned.count_nonzero(dim=1).tolist())) > 1


def test_ties_do_not_change_the_count() -> None:
    pruned = ria.prune(torch.ones(3, 8), torch.ones(8), Pattern(0.5))
    assert pruned.flatten().nonzero().flatten().tolist() == list(range(12))


@pytest.mark.parametrize("text", ["2:4", "1:4", "3:4", "2:3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_patterns_keep_the_largest_of_each_group(text: str, dtype: torch.dtype) -> None:
    pattern = Pattern.parse(text)
    weight, norms = torch.randn(5, 12).to(dtype), torch.rand(12) + 0.1
    pruned = ria.prune(weight, norms, pattern)
    assert pruned.dtype == dtype
    assert holds(pruned, pattern)
    assert pattern.n
    assert pattern.m
    score = slow_score(weight.float(), norms, 0.5)
    for row in range(5):
        for start in range(0, 12, pattern.m):
            best = score[row, start : start + pattern.m].topk(pattern.n).indices.sort().values
            assert torch.equal(pruned[row, start : start + pattern.m].nonzero().flatten(), best)


def test_no_input_is_emptied_for_its_small_weights() -> None:
    """What relative importance is for: an input whose weights are all a thousand times smaller keeps a share."""
    weight = torch.randn(8, 32)
    weight[:, 3] /= 1000
    assert ria.prune(weight, torch.ones(32), Pattern(0.5))[:, 3].count_nonzero() >= 2
