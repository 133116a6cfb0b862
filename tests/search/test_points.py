import pytest

from lors_cli.search import points


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("1e-4, 3e-4", ["1e-4", "3e-4"]),
        ("[q_proj, k_proj],[up_proj]", ["[q_proj, k_proj]", "[up_proj]"]),
        ("{path: 'a,b', limit: 3},{path: c}", ["{path: 'a,b', limit: 3}", "{path: c}"]),
        ("\"a,]b\",don't,won't", ['"a,]b"', "don't", "won't"]),
        ("1,", ["1", ""]),
    ],
)
def test_commas_split_only_outside_brackets_and_quotes(text: str, parts: list[str]) -> None:
    assert points.split(text) == parts
