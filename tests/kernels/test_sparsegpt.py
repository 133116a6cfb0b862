"""The kernel against the plain loop, to the last bit: on the GPU where there is one, else in Triton's interpreter."""

import pytest
import torch
from torch import Tensor

from lors_cli.kernels import sparsegpt
from lors_cli.sparsity.pattern import Pattern
from tests.kernels.interpreter import needs_gpu, needs_triton, run_in_interpreter

# rows and columns, then N:M or None for an unstructured mask; programs hold 4 rows, tiles 128 columns
CASES = [
    (5, 128, 2, 4),
    (9, 20, 2, 4),
    (3, 20, 1, 4),
    (3, 20, 3, 4),
    (3, 24, 4, 8),
    (2, 18, 2, 6),
    (2, 64, 20, 32),
    (2, 128, None, None),
    (3, 19, None, None),
    (1, 1, None, None),
]


def plain(
    weight: Tensor, factor: Tensor, n: int | None, m: int | None, removed: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The loop as it is defined; of equal scores the first goes. Returns what was removed, too."""
    work, errors = weight.clone(), torch.zeros_like(weight)
    removed = torch.zeros_like(weight, dtype=torch.bool) if removed is None else removed
    for j in range(work.shape[1]):
        if n and m and j % m == 0:
            score = work[:, j : j + m] ** 2 / factor.diagonal()[j : j + m] ** 2
            first = score.sort(dim=1, stable=True).indices[:, : m - n]
            removed[:, j : j + m] = torch.zeros_like(score, dtype=torch.bool).scatter(1, first, True)
        gone = removed[:, j]
        errors[gone, j] = work[gone, j] / factor[j, j]
        work[:, j + 1 :] -= errors[:, j, None] * factor[j, j + 1 :]
        work[gone, j] = 0
    return work, errors, removed


def compare(rows: int, columns: int, n: int | None, m: int | None, device: str) -> None:
    torch.manual_seed(rows * columns)
    x = torch.randn(2 * columns + 9, columns + 5)
    # parts of larger matrices, as the solve hands them over; the weight transposed
    factor = torch.linalg.cholesky(torch.linalg.inv(x.T @ x), upper=True)[3 : 3 + columns, 3 : 3 + columns]
    weight = torch.randn(columns + 5, rows + 1).T[1:, 2 : 2 + columns]
    weight[0] = 0
    before = weight.clone()
    mask = None if m else torch.rand(columns, rows).T < 0.6
    pruned, errors, removed = plain(weight, factor, n, m, mask)
    given = None if mask is None else mask.to(device)
    pattern = Pattern.parse(f"{n}:{m}" if m else 0.6)
    result = sparsegpt.prune_block(weight.to(device), factor.to(device), pattern, given)
    assert torch.equal(result[0].cpu(), pruned)
    assert torch.equal(result[1].cpu(), errors)
    assert torch.equal((pruned == 0)[1:], removed[1:])  # so the masks are the same
    assert torch.equal(weight, before)


def compare_ties(device: str) -> None:
    weight = torch.tensor([[1.0, -1, 1, -1, 2, 1, 1, 1]], device=device)
    pruned, errors = sparsegpt.prune_block(weight, torch.eye(8, device=device), Pattern.parse("2:4"), None)
    assert pruned.tolist() == [[0, 0, 1, -1, 2, 0, 0, 1]]
    assert errors.tolist() == [[1, -1, 0, 0, 0, 1, 1, 0]]


@needs_triton
@needs_gpu
@pytest.mark.parametrize("case", CASES)
def test_equals_the_plain_loop_on_a_gpu(case: tuple[int, int, int | None, int | None]) -> None:
    assert sparsegpt.available(torch.zeros(1, device="cuda"))
    compare(*case, device="cuda")
    compare_ties("cuda")


@needs_triton
def test_equals_the_plain_loop_in_the_interpreter() -> None:
    run_in_interpreter("tests.kernels.test_sparsegpt")


@needs_triton
def test_says_what_it_expects() -> None:
    weight, factor = torch.zeros(2, 6), torch.eye(6)
    with pytest.raises(ValueError, match="got 6 columns, 2:4"):
        sparsegpt.prune_block(weight, factor, Pattern.parse("2:4"), None)
    with pytest.raises(ValueError, match="a mask of what to remove"):
        sparsegpt.prune_block(weight, factor, Pattern(0.5), None)


def test_not_for_other_devices_or_dtypes() -> None:
    assert not sparsegpt.available(torch.zeros(1))
    assert not sparsegpt.available(torch.zeros(1, dtype=torch.float64))


def main() -> None:
    assert not sparsegpt.available(torch.zeros(1))
    for case in CASES:
        compare(*case, device="cpu")
    compare_ties("cpu")


if __name__ == "__main__":
    main()
