import pytest
import torch
from torch import Tensor

from lors_cli.errors import LorsError
from lors_cli.pruning import sparsegpt, wanda
from lors_cli.pruning.statistics import Hessian
from lors_cli.quantization import gptq
from lors_cli.quantization.grid import Grid, Scales, codes_of, fit, values
from lors_cli.sparsity import hessian as hessians
from lors_cli.sparsity.mask import holds
from lors_cli.sparsity.pattern import Pattern


def solve(weight: Tensor, hessian: Tensor, pattern: Pattern, block_size: int = 128) -> Tensor:
    """Both halves of the method."""
    return sparsegpt.prune(weight, sparsegpt.prepare(hessian.clone()), pattern, block_size=block_size)


def slow_sparsegpt(weight: Tensor, hessian: Tensor, pattern: Pattern, damping: float, block: int) -> Tensor:
    """Algorithm 1 of the paper from its definition: H^-1 is eliminated column by column, no Cholesky factor.

    In the exact OBS form the inverse Hessian of the columns not yet handled is [H_F]^-1, which is computed here anew
    for every column; the score of a column is w^2 / [H_F^-1]_jj.
    """
    work, columns = weight.clone(), weight.shape[1]
    h = hessian.clone()
    h += damping * h.diagonal().mean() * torch.eye(columns, dtype=h.dtype)
    inverse = [torch.linalg.inv(h[j:, j:]) for j in range(columns)]
    pivots = torch.tensor([float(i[0, 0]) for i in inverse], dtype=h.dtype)
    keep = torch.ones_like(work, dtype=torch.bool)
    group = pattern.m or block
    for j in range(columns):
        if j % group == 0:
            score = work[:, j : j + group] ** 2 / pivots[j : j + group]
            if pattern.n:
                for row in range(len(work)):
                    keep[row, j + score[row].argsort()[: group - pattern.n]] = False
            else:
                flat = score.flatten().argsort()[: int(score.numel() * pattern.sparsity) + 1]
                keep[:, j : j + group] = torch.ones_like(score).flatten().index_fill(0, flat, 0).view_as(score).bool()
        error = work[:, j].masked_fill(keep[:, j], 0) / inverse[j][0, 0]
        work[:, j:] -= error[:, None] * inverse[j][0]
        work[:, j] = work[:, j].masked_fill(~keep[:, j], 0)
    return work


def test_float32_rounds_in_the_published_order() -> None:
    """One column of (R, C) at a time, each product rounded before it is subtracted: equal to the last bit."""
    weight, x = torch.randn(20, 64), torch.randn(300, 64)
    hessian, block = 2 * x.T @ x / 300, 16
    work = weight.clone()
    damped = hessian + torch.diag(0.01 * hessian.diag().mean() * torch.ones(64))
    u = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
    for start in range(0, 64, block):
        errors = torch.zeros(20, block)
        for j in range(start, start + block):
            if j % 4 == 0:
                score = work[:, j : j + 4] ** 2 / u.diag()[j : j + 4] ** 2
                removed = score.topk(2, dim=1, largest=False).indices + j
            gone = (removed == j).any(dim=1)
            errors[:, j - start] = (work[:, j] / u[j, j]).where(gone, 0)
            work[:, j + 1 : start + block] -= errors[:, j - start, None] * u[j, j + 1 : start + block]
            work[gone, j] = 0
        work[:, start + block :] -= errors @ u[start : start + block, start + block :]
    assert torch.equal(solve(weight, hessian, Pattern.parse("2:4"), block_size=block), work)


def correlated(tokens: int, columns: int) -> Tensor:
    mixing = torch.randn(columns, columns, dtype=torch.float64) * 0.3 + torch.eye(columns, dtype=torch.float64)
    return torch.randn(tokens, columns, dtype=torch.float64) @ mixing


@pytest.mark.parametrize("text", ["2:4", "1:4", "3:4", "4:8", "2:6", "0.5", "0.75"])
def test_equals_exact_obs_in_float64(text: str) -> None:
    pattern = Pattern.parse(text)
    weight, x = torch.randn(6, 48, dtype=torch.float64), correlated(200, 48)
    hessian = 2 * x.T @ x / len(x)
    block = 24
    pruned = solve(weight, hessian, pattern, block_size=block)
    expected = slow_sparsegpt(weight, hessian, pattern, 0.01, block)
    assert torch.equal(pruned == 0, expected == 0)
    torch.testing.assert_close(pruned, expected, rtol=1e-8, atol=1e-10)
    assert holds(pruned, pattern)


def test_reconstructs_better_than_wanda() -> None:
    weight, x = torch.randn(16, 64, dtype=torch.float64), correlated(400, 64)
    pattern = Pattern.parse("2:4")
    ours = solve(weight, 2 * x.T @ x, pattern)
    theirs = wanda.prune(weight, x.norm(dim=0), pattern)
    assert (x @ (ours - weight).T).norm() < 0.9 * (x @ (theirs - weight).T).norm()


def test_dead_inputs_are_pruned_and_do_not_disturb() -> None:
    weight, x = torch.randn(8, 32, dtype=torch.float64), correlated(100, 32)
    x[:, [3, 17]] = 0
    pruned = solve(weight, x.T @ x, Pattern(0.5))
    assert pruned[:, [3, 17]].count_nonzero() == 0
    assert pruned.isfinite().all()


def test_bfloat16_weights_keep_their_dtype() -> None:
    weight = torch.randn(8, 32).bfloat16()
    statistic = Hessian()
    statistic.add(torch.randn(2, 50, 32).bfloat16())
    pruned = solve(weight, statistic.value(), Pattern.parse("2:4"))
    assert pruned.dtype == torch.bfloat16
    assert holds(pruned, Pattern.parse("2:4"))


def test_hessian_is_the_mean_over_samples() -> None:
    x = torch.randn(5, 18, 12)
    statistic = Hessian()
    for part in x.split(2):
        statistic.add(part)
    flat = x.flatten(0, 1)
    torch.testing.assert_close(statistic.value(), 2 * flat.T @ flat / 5)
    assert statistic.tokens == 90


def test_larger_dampings_are_tried_logged_and_end_in_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    indefinite = torch.diag(torch.tensor([1.0, 1.0, 1.0, -0.02]))
    logged: list[str] = []
    monkeypatch.setattr(hessians.log, "warning", lambda message, *args: logged.append(message % args))
    pruned = solve(torch.randn(4, 4), indefinite, Pattern.parse("2:4"))
    assert holds(pruned, Pattern.parse("2:4"))
    assert logged == ["the Hessian is not positive definite at damping 0.01"]
    with pytest.raises(LorsError, match="even at damping 10"):
        solve(torch.randn(4, 4), torch.diag(torch.tensor([1.0, 1, 1, -50.0])), Pattern.parse("2:4"))


@pytest.mark.parametrize("pattern", ["2:4", "0.5"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_pruning_and_rounding_in_one_solve(pattern: str, symmetric: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the solve on whole matrices, with the inverse of what is left made anew for every column."""
    monkeypatch.setattr(gptq, "ROWS", 5)
    torch.manual_seed(0)
    columns, size, wanted = 48, 8, Pattern.parse(pattern)
    x = torch.randn(300, columns, dtype=torch.float64) @ torch.randn(columns, columns, dtype=torch.float64)
    hessian, weight = 2 * x.T @ x, torch.randn(12, columns, dtype=torch.float64)
    grid = Grid(4, size, symmetric)
    statistic = sparsegpt.prepare(hessian.clone())
    made = sparsegpt.prune_and_round(weight, statistic, wanted, grid, torch.float32, block_size=16)

    h = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(columns, dtype=torch.float64)
    inverses = [torch.linalg.inv(h[k:, k:])[0, 0] for k in range(columns)]
    w, mask, codes = weight.clone(), torch.ones(12, columns, dtype=torch.bool), torch.zeros(12, columns)
    for j in range(columns):
        group = 4 if pattern == "2:4" else 16
        if j % group == 0:
            score = w[:, j : j + group] ** 2 / torch.stack(inverses[j : j + group])
            if pattern == "2:4":
                mask[:, j : j + group] = score.argsort(dim=1).argsort(dim=1) >= 2
            else:
                mask[:, j : j + group] = score > score.flatten().sort().values[score.numel() // 2]
        if j % size == 0:
            scales = fit(w[:, j : j + size] * mask[:, j : j + size], grid, torch.float32)
        one = Scales(scales.scale, scales.zero_point)
        kept = w[:, j : j + 1] * mask[:, j : j + 1]
        code = codes_of(kept, one, grid)
        codes[:, j] = code[:, 0]
        inverse = torch.linalg.inv(h[j:, j:])
        error = (w[:, j] - values(code, one, torch.float64)[:, 0]) / inverse[0, 0]
        w[:, j:] -= error[:, None] * inverse[0]
    assert torch.equal(made.codes.float(), codes)
    assert bool((made.weight()[~mask] == 0).all())
    assert holds(made.weight(), wanted)
