from typing import Any

import pytest
import torch
from torch import Tensor

from lors_cli.pruning import least_squares, magnitude
from lors_cli.pruning.least_squares import update
from lors_cli.sparsity.pattern import Pattern

EXACT: dict[str, Any] = {"update_iterations": 500, "update_tolerance": 0.0}


def problem(pattern: str = "0.5", tokens: int = 300, columns: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    """A dense and a pruned weight (24, columns) and correlated inputs (tokens, columns), one of them always zero."""
    x = torch.randn(tokens, columns, dtype=torch.float64) @ torch.randn(columns, columns, dtype=torch.float64)
    x[:, 3] = 0
    dense = torch.randn(24, columns, dtype=torch.float64)
    pruned = magnitude.prune(dense, None, Pattern.parse(pattern))
    pruned[5] = 0  # a row that lost everything
    return dense, pruned, x


def solved(dense: Tensor, pruned: Tensor, x: Tensor, damping: float) -> Tensor:
    """Row by row: the normal equations on the row's support."""
    hessian, result = x.T @ x, pruned.clone()
    ridge = damping * hessian.diagonal().mean()
    for row in range(len(pruned)):
        kept = pruned[row] != 0
        matrix = hessian[kept][:, kept] + ridge * torch.eye(int(kept.sum()), dtype=torch.float64)
        right = (dense[row] @ hessian)[kept] + ridge * pruned[row, kept]
        result[row, kept] = torch.linalg.solve(matrix, right)
    return result


def share(dense: Tensor, weight: Tensor, x: Tensor) -> float:
    return float((x @ (dense - weight).T).norm() ** 2 / (x @ dense.T).norm() ** 2)


@pytest.mark.parametrize("pattern", ["0.5", "0.8", "2:4", "1:4", "3:4"])
@pytest.mark.parametrize("tokens", [300, 10])  # 10 tokens leave most of the 32 inputs to the damping
def test_the_solution_is_that_of_the_normal_equations(pattern: str, tokens: int) -> None:
    dense, pruned, x = problem(pattern, tokens)
    for damping in (0.02, 0.5):
        expected = solved(dense, pruned, x, damping)
        fit = update(dense, pruned, x.T @ x, update_damping=damping, **EXACT)
        torch.testing.assert_close(fit.weight, expected, rtol=1e-7, atol=1e-8)
        assert fit.before == pytest.approx(share(dense, pruned, x), rel=1e-9)
        assert fit.after == pytest.approx(share(dense, expected, x), rel=1e-6)
        assert fit.after < fit.before


def test_float32_is_as_exact_as_its_digits() -> None:
    dense, pruned, x = problem()
    expected = solved(dense, pruned, x, 0.1)
    fit = update(dense.float(), pruned.float(), (x.T @ x).float(), update_iterations=500, update_tolerance=1e-6)
    assert float((fit.weight - expected).norm() / expected.norm()) < 1e-5


def test_every_step_lowers_the_error_until_the_tolerance_ends_them() -> None:
    dense, pruned, x = problem()
    errors = [
        update(dense, pruned, x.T @ x, update_iterations=steps, update_tolerance=0).after for steps in range(1, 9)
    ]
    assert errors == sorted(errors, reverse=True)
    assert len(set(errors)) == 8
    loose, tight = (
        update(dense, pruned, x.T @ x, update_tolerance=tolerance, update_iterations=100).steps
        for tolerance in (0.3, 0.03)
    )
    assert 0 < loose < tight < 100


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_support_stays_bit_for_bit_and_no_row_gets_worse(dtype: torch.dtype) -> None:
    dense, pruned, x = problem("2:4")
    x[:, 8:12] *= 1e-4  # where the fit moves weights far
    dense, pruned = dense.to(dtype), pruned.to(dtype)
    given = pruned.clone()
    fit = update(dense, pruned, (x.T @ x).to(torch.promote_types(dtype, torch.float32)))
    assert fit.weight.dtype == dtype
    assert torch.equal(pruned, given)  # what came in is not changed
    assert torch.equal(fit.weight != 0, pruned != 0)
    assert bool(fit.weight.isfinite().all())
    lost = [(x @ (dense - weight).double().T).norm(dim=0) for weight in (pruned, fit.weight)]
    assert bool((lost[1] <= lost[0] * (1 + 1e-6)).all())


def test_a_weight_that_would_vanish_or_overflow_stays() -> None:
    """Two equal inputs: the best fit of one weight is its own value plus that of the removed other one."""
    x = torch.ones(8, 2, dtype=torch.float64)
    dense = torch.tensor([[1.0, -1.0], [4e4, 4e4], [1.0, 1.0]])
    pruned = dense * torch.tensor([1.0, 0.0])
    statistic = (x.T @ x).float()
    fit = update(dense, pruned, statistic, update_damping=1e-9, **EXACT)
    torch.testing.assert_close(fit.weight[1:, 0], torch.tensor([8e4, 2.0]))
    assert float(fit.weight[0, 0]) == 1  # it would be 0, which is no weight of the support
    assert fit.rows_left == 1
    half = update(dense.half(), pruned.half(), statistic, update_damping=1e-9, **EXACT)
    assert half.weight[:, 0].tolist()[1:] == [4e4, 2.0]  # 80,000 is no float16
    assert half.rows_left == 2


def test_rows_that_are_solved_are_left_and_counted() -> None:
    dense, pruned, x = problem()
    done = update(dense, pruned, x.T @ x, **EXACT).weight
    again = update(dense.bfloat16(), done.bfloat16(), x.T @ x, update_damping=10)
    assert again.rows_left > 0  # rounding to bfloat16 can only lose
    nothing = update(dense, pruned, torch.zeros_like(x.T @ x))
    assert torch.equal(nothing.weight, pruned)
    assert nothing.rows_left == 24
    assert (nothing.before, nothing.after) == (0, 0)


def test_rows_are_solved_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    dense, pruned, x = problem()
    whole = update(dense, pruned, x.T @ x)
    monkeypatch.setattr(least_squares, "ROWS", 7)
    parts = update(dense, pruned, x.T @ x)
    torch.testing.assert_close(parts.weight, whole.weight)
    assert parts.before == pytest.approx(whole.before)
    assert parts.after == pytest.approx(whole.after)
    assert (parts.steps, parts.rows_left) == (whole.steps, whole.rows_left)


def test_fewer_tokens_than_inputs_raise_the_damping() -> None:
    dense, pruned, x = problem(tokens=10)
    assert update(dense, pruned, x.T @ x, 300).damping == 0.1
    fit = update(dense, pruned, x.T @ x, 10, **EXACT)
    assert fit.damping == pytest.approx(0.32)
    torch.testing.assert_close(fit.weight, solved(dense, pruned, x, 0.32), rtol=1e-7, atol=1e-8)
