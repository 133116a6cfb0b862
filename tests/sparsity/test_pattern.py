import pytest

from lors_cli.sparsity.pattern import Pattern


@pytest.mark.parametrize("value", [0.5, "0.5", 0.75, 1e-3])
def test_fractions(value: object) -> None:
    pattern = Pattern.parse(value)
    assert pattern == Pattern(float(value))  # type: ignore[arg-type]
    assert str(pattern) == f"{float(value):g}"  # type: ignore[arg-type]


def test_n_counts_the_kept_of_m() -> None:
    assert Pattern.parse("1:4") == Pattern(sparsity=0.75, n=1, m=4)
    assert Pattern.parse("3:4") == Pattern(sparsity=0.25, n=3, m=4)
    assert str(Pattern.parse("2:8")) == "2:8"


@pytest.mark.parametrize("value", [0, 1, 1.5, -0.1, "5:4", "4:4", "0:4", "2:0", "half", True, None, "2:4:8", "nan"])
def test_refuses(value: object) -> None:
    with pytest.raises(ValueError, match="fraction of zeros"):
        Pattern.parse(value)
