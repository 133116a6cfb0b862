import pytest
import torch

from lors_cli.sparsity import mask
from lors_cli.sparsity.pattern import Pattern


def slow_keep(score: torch.Tensor, n: int, m: int) -> torch.Tensor:
    """The definition, one group at a time; of equals the earlier is kept."""
    keep = torch.zeros_like(score, dtype=torch.bool)
    for row in range(score.shape[0]):
        for start in range(0, score.shape[1], m):
            group = sorted(range(start, start + m), key=lambda column: (-float(score[row, column]), column))
            keep[row, group[:n]] = True
    return keep


@pytest.mark.parametrize("pattern", ["2:4", "4:8", "2:8", "1:4", "3:4", "3:6"])
def test_groups_equal_the_slow_version_with_ties(pattern: str) -> None:
    parsed = Pattern.parse(pattern)
    assert parsed.n
    assert parsed.m
    score = torch.randint(0, 4, (5, 24)).float()  # few values, many ties
    score[2] = 0
    assert torch.equal(mask.keep_largest(score, parsed, per_row=True), slow_keep(score, parsed.n, parsed.m))


@pytest.mark.parametrize("fraction", [0.5, 0.75, 0.29, 0.01])
def test_fraction_removes_an_exact_count(fraction: float) -> None:
    score = torch.rand(7, 100)
    score[3] = 1.0
    removed = round(100 * fraction)
    per_row = ~mask.keep_largest(score, Pattern(fraction), per_row=True)
    assert per_row.sum(dim=1).tolist() == [removed] * 7
    together = ~mask.keep_largest(score, Pattern(fraction), per_row=False)
    assert int(together.sum()) == int(700 * fraction + 1e-9)
    kept, gone = score[~together], score[together]
    assert kept.min() >= gone.max()


def test_detect_names_the_tightest_pattern() -> None:
    for text in ("1:4", "2:8", "2:4", "4:8", "3:4"):
        pattern = Pattern.parse(text)
        weight = torch.randn(16, 32).abs() + 1
        pruned = weight.where(mask.keep_largest(torch.rand(16, 32), pattern, per_row=True), 0)
        assert mask.detect(pruned) == text
        assert mask.holds(pruned, pattern)
    assert mask.detect(torch.ones(4, 8)) == "dense"
    assert not mask.holds(torch.ones(4, 6), Pattern.parse("2:4"))
    ragged = torch.ones(8, 16)
    ragged[:, :3] = 0
    assert mask.detect(ragged) == "unstructured"


def test_zeros_lose_their_sign_and_nothing_else_changes() -> None:
    weight = torch.tensor([[-0.0, 0.0, -1.5, 2.0**-149]])
    assert mask.negative_zeros(weight) == 1
    clean = mask.positive_zeros(weight)
    assert mask.negative_zeros(clean) == 0
    assert torch.equal(clean, weight)
