import pytest
import torch
from torch import Tensor

from lors_cli.quantization import METHODS, gptq, rtn
from lors_cli.quantization.grid import Grid, Scales, codes_of, fit
from lors_cli.quantization.stored import Quantized

GRIDS = [Grid(bits, 8, symmetric) for bits in (3, 4, 8) for symmetric in (True, False)]


def hessian_of(columns: int, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    x = torch.randn(3 * columns, columns, dtype=torch.float64) @ torch.randn(columns, columns, dtype=torch.float64)
    x[:, columns // 3] = 0  # a feature that is always zero
    return 2 * x.T @ x


def sparse(rows: int, columns: int, seed: int = 1) -> Tensor:
    torch.manual_seed(seed)
    weight = torch.randn(rows, columns, dtype=torch.float64)
    drop = torch.rand(rows, columns // 4, 4).argsort(dim=-1) < 2
    weight[drop.view(rows, columns)] = 0
    weight[0] = 0
    weight[1, :8] = 0
    return weight


def slow(
    weight: Tensor, hessian: Tensor, grid: Grid, damping: float, *, act_order: bool, scales: Scales | None = None
) -> tuple[Tensor, Tensor]:
    """Algorithm 1 row by row and weight by weight, with the inverse of what is left made anew for every column."""
    columns, size = weight.shape[1], grid.group_size
    h = hessian.clone()
    dead = h.diagonal() == 0
    h[dead, dead] = 1
    diagonal = hessian.diagonal()
    order = sorted(range(columns), key=lambda j: (-float(diagonal[j]), j)) if act_order else list(range(columns))
    h += damping * h.diagonal().mean() * torch.eye(columns, dtype=h.dtype)
    codes, scale_of = torch.zeros(weight.shape, dtype=torch.int64), torch.zeros_like(weight)
    low, high, steps = -(2 ** (grid.bits - 1)), 2 ** (grid.bits - 1) - 1, 2**grid.bits - 1
    for i in range(len(weight)):
        w = weight[i].clone()
        w[dead] = 0
        kept = w != 0
        grids: dict[int, tuple[float, int]] = {}

        def fitted(group: int, w: Tensor = w) -> tuple[float, int]:
            own = w[group * size : (group + 1) * size]
            smallest, largest = min(float(own.min()), 0.0), max(float(own.max()), 0.0)
            width = 2 * max(-smallest, largest) if grid.symmetric else largest - smallest
            # in a dtype of fewer bits, or else the largest weight of a group would lie in the middle of two codes
            scale = max(
                float(torch.tensor(width / steps, dtype=torch.float64).float()), torch.finfo(torch.float32).tiny
            )
            return scale, 0 if grid.symmetric else max(min(round(low - smallest / scale), high), low)

        if scales:
            zeros = [0] * scales.scale.shape[1] if scales.zero_point is None else scales.zero_point[i].tolist()
            grids = dict(enumerate(zip(scales.scale[i].tolist(), zeros, strict=True)))
        elif act_order:
            grids = {group: fitted(group) for group in range(columns // size)}
        for place, j in enumerate(order):
            if j // size not in grids:
                grids[j // size] = fitted(j // size)
            scale, zero = grids[j // size]
            code = max(min(round(float(w[j]) / scale) + zero, high), low)
            codes[i, j], scale_of[i, j] = code, scale
            left = order[place:]
            inverse = torch.linalg.inv(h[left][:, left])
            error = (float(w[j]) - (code - zero) * scale) / float(inverse[0, 0])
            for column, k in zip(inverse[0, 1:].tolist(), left[1:], strict=True):
                if kept[k]:
                    w[k] -= error * column
    return codes, scale_of


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("act_order", [False, True])
def test_codes_are_those_of_the_algorithm(grid: Grid, act_order: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gptq, "ROWS", 4)  # two parts
    weight, hessian = sparse(6, 48), hessian_of(48)
    before = hessian.clone()
    prepared = gptq.prepare(hessian, act_order=act_order)
    assert torch.equal(hessian, before)
    got = gptq.quantize(weight, prepared, grid, torch.float32)
    codes, scale = slow(weight, hessian, grid, 0.01, act_order=act_order)
    torch.testing.assert_close(got.scale.double().repeat_interleave(8, dim=1), scale, rtol=0, atol=0)
    assert torch.equal(got.codes.long(), codes)
    assert bool((got.weight()[weight == 0] == 0).all())
    assert got.codes.min() >= grid.low
    assert got.codes.max() <= grid.high


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("act_order", [False, True])
def test_scales_that_are_given_stay_and_the_codes_are_those_of_the_algorithm_on_them(
    grid: Grid, act_order: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gptq, "ROWS", 4)  # two parts
    weight, hessian = sparse(6, 48), hessian_of(48)
    given = fit(
        0.8 * weight + 0.1 * sparse(6, 48, seed=2), grid, torch.float32
    )  # not its own: some weights are clamped
    got = gptq.quantize(weight, gptq.prepare(hessian, act_order=act_order), grid, torch.float32, given)
    codes, _ = slow(weight, hessian, grid, 0.01, act_order=act_order, scales=given)
    assert torch.equal(got.scale, given.scale)
    assert got.zero_point is given.zero_point
    assert torch.equal(got.codes.long(), codes)
    assert bool((got.weight()[weight == 0] == 0).all())
    assert {int(got.codes.min()), int(got.codes.max())} & {grid.low, grid.high}


@pytest.mark.parametrize("size", [4, 16, 24, 48])
def test_blocks_change_nothing(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, prepared = sparse(6, 48), gptq.prepare(hessian_of(48))
    whole = gptq.quantize(weight, prepared, Grid(4, size), torch.float32)
    monkeypatch.setattr(gptq.block_width, "__defaults__", (16,))
    parts = gptq.quantize(weight, prepared, Grid(4, size), torch.float32)
    assert torch.equal(whole.codes, parts.codes)
    assert torch.equal(whole.scale, parts.scale)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["dense", "2:4"])
def test_loses_less_than_rounding_to_nearest(act_order: bool, dtype: torch.dtype, kind: str) -> None:
    torch.manual_seed(0)
    weight = (torch.randn(32, 64) if kind == "dense" else sparse(32, 64)).to(dtype)
    hessian, grid = hessian_of(64).float(), Grid(4, 16)
    prepared = gptq.prepare(hessian, act_order=act_order)
    ours, nearest = gptq.quantize(weight, prepared, grid, dtype), rtn.quantize(weight, None, grid, dtype)

    def lost(quantized: Quantized) -> float:
        change = quantized.weight().float() - weight.float()
        return float(((change @ hessian) * change).sum())

    assert ours.scale.dtype == dtype
    assert lost(ours) < (0.7 if kind == "dense" else 0.97) * lost(nearest)  # of a masked row half can make up for it
    for quantized in (ours, nearest):
        assert bool((quantized.weight()[weight == 0] == 0).all())


def test_nearest_is_the_grid_alone() -> None:
    weight = sparse(6, 48).bfloat16()
    got = rtn.quantize(weight, None, Grid(3, 16, symmetric=False), torch.bfloat16)
    scales = fit(weight, got.grid)
    assert torch.equal(got.codes, codes_of(weight, scales, got.grid))
    assert torch.equal(got.scale, scales.scale)


def test_rows_of_the_registry() -> None:
    weight, hessian = sparse(6, 48), hessian_of(48)
    for row in METHODS.values():
        options = row.options()
        got = row.quantize(weight, row.prepare(hessian, options), Grid(4, 16), torch.float64)
        assert got.codes.shape == weight.shape
