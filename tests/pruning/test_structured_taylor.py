import pytest
import torch

from lors_cli.pruning.structured import Member
from lors_cli.pruning.structured_taylor import keep, member_importance

WEIGHT = torch.tensor([[1.0, -2.0], [3.0, 4.0], [0.0, 1.0], [2.0, 2.0]])


@pytest.mark.parametrize(
    ("by_rows", "form", "expected"),
    [
        (True, "element", [10.0, 5.0]),
        (True, "vector", [1.0 + 7.0, 1.0 + 4.0]),
        (False, "element", [6.0, 9.0]),
        (False, "vector", [6.0, 5.0]),
    ],
)
def test_importances_by_hand(by_rows: bool, form: str, expected: list[float]) -> None:
    assert member_importance(Member(WEIGHT, torch.ones(4, 2), by_rows), 2, form).tolist() == expected


@pytest.mark.parametrize(
    ("aggregation", "kept"), [("sum", [1, 3]), ("prod", [2, 3]), ("max", [1, 2]), ("last", [0, 1])]
)
def test_the_importances_of_the_members_are_joined(aggregation: str, kept: list[int]) -> None:
    """Sums 5, 13, 10, 12; products 4, 12, 16, 32; greatest 4, 12, 8, 8."""
    members = [
        Member(torch.tensor([[1.0], [1.0], [8.0], [8.0]]), torch.ones(4, 1), by_rows=True),
        Member(torch.tensor([[-4.0, 12.0, 2.0, 4.0]]), torch.ones(1, 4), by_rows=False),
    ]
    assert keep(members, 4, 2, torch.Generator(), aggregation=aggregation) == kept


def test_of_equal_parts_the_first_stay() -> None:
    member = Member(torch.tensor([[3.0], [1.0], [2.0], [1.0]]), torch.ones(4, 1), by_rows=True)
    assert keep([member], 4, 3, torch.Generator()) == [0, 1, 2]
