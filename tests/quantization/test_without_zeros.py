import pytest
import torch

from lors_cli.quantization.grid import Grid, codes_of, fit
from lors_cli.quantization.stored import Quantized
from lors_cli.quantization.without_zeros import codes_of as unpacked
from lors_cli.quantization.without_zeros import pack

GRIDS = [Grid(bits, 8, symmetric) for bits in (3, 4, 5, 8) for symmetric in (True, False)]


def quantized(grid: Grid, zeros: float | str, shape: tuple[int, int] = (6, 72)) -> Quantized:
    torch.manual_seed(0)
    weight = torch.randn(shape)
    drop = (
        torch.rand(shape) < zeros
        if isinstance(zeros, float)
        else torch.rand(shape[0], shape[1] // 4, 4).argsort(-1) < 2
    )
    weight[drop.view(shape)] = 0
    weight[0, :8] = 0
    scales = fit(weight, grid, torch.bfloat16)
    return Quantized(codes_of(weight, scales, grid), *scales, grid)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("zeros", ["2:4", 0.5, 0.9, 1.0])
@pytest.mark.parametrize("layout", [None, "2:4", "bitmask"])
def test_round_trip(grid: Grid, zeros: float | str, layout: str | None) -> None:
    one = quantized(grid, zeros)
    if layout == "2:4" and zeros in (0.5, 0.9):
        with pytest.raises(ValueError, match="at most 2 nonzeros"):
            pack(one, layout)
        return
    kept = pack(one, layout)
    assert kept is not None
    assert kept.layout == layout or layout is None
    back = unpacked(kept, (6, 72), grid, one.zero_point)
    assert torch.equal(back, one.codes)


@pytest.mark.parametrize("zeros", [0.0, 0.2])
def test_what_would_not_be_smaller_is_left(zeros: float) -> None:
    assert pack(quantized(Grid(4, 8), zeros)) is None
    assert pack(quantized(Grid(4, 8), zeros), "2:4") is None


@pytest.mark.parametrize("zeros", ["2:4", 0.5])
def test_four_bits_become_three_at_half_zeros(zeros: float | str) -> None:
    one = quantized(Grid(4, 128), zeros, (64, 1024))
    kept = pack(one)
    assert kept is not None
    bits = 8 * (kept.values.nbytes + kept.positions.nbytes) / (64 * 1024)
    assert bits == pytest.approx(1 + 4 * float(one.mask().float().mean()), abs=0.01)  # some kept ones were rounded to 0
    assert bits < 3.05
