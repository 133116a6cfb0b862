import pytest
import torch
from torch import Tensor

from lors_cli.errors import LorsError
from lors_cli.pruning.from_mask import prune
from lors_cli.sparsity.pattern import Pattern

MASK = torch.tensor([[1, 0, 1, 0], [0, 0, 1, 1]])


@pytest.mark.parametrize("mask", [MASK, MASK.bool(), -3.5 * MASK, MASK.to(torch.uint8)])
@pytest.mark.parametrize("pattern", [None, Pattern.parse("2:4"), Pattern(0.5)])
def test_what_is_true_or_nonzero_stays_as_it_is(mask: Tensor, pattern: Pattern | None) -> None:
    weight = torch.randn(2, 4).bfloat16()
    assert torch.equal(prune(weight, mask, pattern), weight * MASK)


@pytest.mark.parametrize(
    ("mask", "pattern", "said"),
    [
        (MASK[:1], None, r"the mask has shape \(1, 4\), the weight \(2, 4\)"),
        (torch.ones(2, 4), None, "keeps every weight"),
        (MASK * torch.tensor([1, 1, torch.nan, 1]), None, "holds NaN"),
        (MASK, Pattern.parse("1:4"), "does not hold 1:4"),
    ],
)
def test_a_mask_that_means_nothing_is_refused(mask: Tensor, pattern: Pattern | None, said: str) -> None:
    with pytest.raises(LorsError, match=said):
        prune(torch.randn(2, 4), mask, pattern)
