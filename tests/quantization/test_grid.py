import pytest
import torch
from torch import Tensor

from lors_cli.quantization.grid import Grid, codes_of, fit, values
from lors_cli.sparsity import mask

GRIDS = [Grid(bits, 8, symmetric) for bits in (2, 3, 4, 5, 8) for symmetric in (True, False)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def weight_of(dtype: torch.dtype = torch.float32) -> Tensor:
    torch.manual_seed(0)
    weight = torch.randn(6, 32) * 0.05
    weight[torch.rand(6, 32) < 0.4] = 0
    weight[1, 8:16] = 0  # a group of zeros
    weight[2, 16:24] = weight[2, 16:24].abs() + 0.3  # of one sign, far from zero
    weight[3, :8] = -weight[3, :8].abs()
    return weight.to(dtype)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_against_one_weight_at_a_time(grid: Grid) -> None:
    weight = weight_of(torch.float64)  # in which Python computes; the largest weights are ties
    scales = fit(weight, grid)
    codes = codes_of(weight, scales, grid)
    steps = 2**grid.bits - 1
    for i in range(6):
        for g in range(4):
            members = [float(w) for w in weight[i, 8 * g : 8 * g + 8]]
            low, high = min(*members, 0.0), max(*members, 0.0)
            width = 2 * max(-low, high) if grid.symmetric else high - low
            scale = float(scales.scale[i, g])
            assert scale == pytest.approx(max(width / steps, torch.finfo(torch.float64).tiny), rel=1e-15)
            zero = 0 if scales.zero_point is None else int(scales.zero_point[i, g])
            if not grid.symmetric:
                assert zero == max(min(round(grid.low - low / scale), grid.high), grid.low)
            for j, w in enumerate(members):
                code = max(min(round(w / scale) + zero, grid.high), grid.low)
                assert int(codes[i, 8 * g + j]) == code, (i, g, j)
    assert int(codes.min()) >= grid.low
    assert int(codes.max()) <= grid.high


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_stay_zeros_and_errors_are_at_most_a_step(grid: Grid, dtype: torch.dtype) -> None:
    weight = weight_of(dtype)
    scales = fit(weight, grid)
    assert scales.scale.dtype == dtype
    back = values(codes_of(weight, scales, grid), scales, dtype)
    assert back.dtype == dtype
    assert bool((back[weight == 0] == 0).all())
    assert mask.negative_zeros(back) == 0
    # half a step inside the grid; the outermost symmetric weight lies half a step off its last code
    step = scales.scale.double().repeat_interleave(8, dim=1)
    assert bool(((back.double() - weight.double()).abs() <= step * (0.5 + 2 ** (grid.bits - 1) * 0.01)).all())


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_what_is_on_the_grid_keeps_its_codes(grid: Grid) -> None:
    scales = fit(weight_of(), grid)
    codes = codes_of(weight_of(), scales, grid)
    assert torch.equal(codes_of(values(codes, scales, torch.float32), scales, grid), codes)


def test_weights_too_small_for_the_dtype_have_a_finite_grid() -> None:
    weight = torch.full((1, 8), 2.0**-24, dtype=torch.float16)  # the smallest that float16 has
    scales = fit(weight, Grid(4, 8))
    assert scales.scale > 0
    assert bool(values(codes_of(weight, scales, Grid(4, 8)), scales, torch.float16).isfinite().all())


def test_scales_are_rounded_before_codes_are_chosen() -> None:
    weight = weight_of()
    rounded = fit(weight, Grid(4, 8), torch.bfloat16)
    assert rounded.scale.dtype == torch.bfloat16
    exact = fit(weight, Grid(4, 8))
    assert torch.equal(rounded.scale, exact.scale.bfloat16())
    expected = (weight / rounded.scale.float().repeat_interleave(8, dim=1)).round().clamp(-8, 7)
    assert torch.equal(codes_of(weight, rounded, Grid(4, 8)), expected.to(torch.int8))


def test_refused() -> None:
    with pytest.raises(ValueError, match="bits from 2 to 8, got 9"):
        Grid(9, 8)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        Grid(4, 0)
    with pytest.raises(ValueError, match="group size 7 divides, got 32"):
        fit(weight_of(), Grid(4, 7))
