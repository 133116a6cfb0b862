import pytest
import torch
from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor, pack_to_int32
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

from lors_cli.quantization import stored
from lors_cli.quantization.grid import Grid, codes_of, fit
from lors_cli.quantization.stored import Quantized, from_tensors, to_tensors

GRIDS = [Grid(bits, 4, symmetric) for bits in range(2, 9) for symmetric in (True, False)]


def quantized(grid: Grid, dtype: torch.dtype = torch.bfloat16, shape: tuple[int, int] = (5, 36)) -> Quantized:
    torch.manual_seed(0)
    weight = torch.randn(shape)
    weight[torch.rand(shape) < 0.5] = 0
    scales = fit(weight, grid, dtype)
    return Quantized(codes_of(weight, scales, grid), *scales, grid)


def scheme(grid: Grid) -> QuantizationScheme:
    args = QuantizationArgs(
        num_bits=grid.bits, type="int", symmetric=grid.symmetric, strategy="group", group_size=grid.group_size
    )
    return QuantizationScheme(targets=["Linear"], weights=args)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_compressed_tensors_reads_the_same_numbers(grid: Grid, dtype: torch.dtype) -> None:
    ours = quantized(grid, dtype)
    theirs = PackedQuantizationCompressor.decompress(to_tensors(ours), scheme(grid))["weight"]
    assert theirs.dtype == dtype
    assert torch.equal(theirs.view(torch.uint8), ours.weight().view(torch.uint8))
    wider = {name: t.float() if name == stored.SCALE else t for name, t in to_tensors(ours).items()}
    assert torch.equal(PackedQuantizationCompressor.decompress(wider, scheme(grid))["weight"], ours.weight(torch.float))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_compressed_tensors_writes_the_same_bytes(grid: Grid) -> None:
    ours = quantized(grid, torch.float32)
    given = {"weight": ours.weight(), "weight_scale": ours.scale, "weight_zero_point": ours.zero_point}
    written = PackedQuantizationCompressor.compress({k: v for k, v in given.items() if v is not None}, scheme(grid))
    assert written.keys() == to_tensors(ours).keys()
    for name, tensor in to_tensors(ours).items():
        assert torch.equal(written[name], tensor), name
        assert (tuple(tensor.shape), tensor.dtype) == stored.layout((5, 36), grid, torch.float32)[name]


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("columns", [0, 1, 7, 8, 31, 32, 33, 64, 100])
def test_pack_and_back(bits: int, columns: int) -> None:
    torch.manual_seed(columns)
    codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (3, columns), dtype=torch.int8)
    packed = stored.pack(codes, bits)
    assert columns == 0 or torch.equal(packed, pack_to_int32(codes, bits))
    assert torch.equal(stored.unpack(packed, bits, columns), codes)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_round_trip(grid: Grid) -> None:
    ours = quantized(grid)
    back = from_tensors(to_tensors(ours), grid)
    assert back.grid == grid
    assert torch.equal(back.codes, ours.codes)
    assert torch.equal(back.scale, ours.scale)
    assert (back.zero_point is None) == (ours.zero_point is None)
    assert ours.zero_point is None or torch.equal(back.zero_point, ours.zero_point)  # type: ignore[arg-type]
    assert torch.equal(ours.mask(), ours.weight() != 0)


def test_what_is_not_such_a_weight_is_refused() -> None:
    grid = Grid(4, 4)
    whole = to_tensors(quantized(grid))
    with pytest.raises(ValueError, match=r"weight_packed: .* got none"):
        from_tensors({name: t for name, t in whole.items() if name != stored.PACKED}, grid)
    with pytest.raises(ValueError, match=r"weight_packed: \(\(5, 5\)"):
        from_tensors({**whole, stored.PACKED: whole[stored.PACKED][:, :3]}, grid)
    with pytest.raises(ValueError, match="weight_g_idx: none"):
        from_tensors({**whole, "weight_g_idx": torch.zeros(36)}, grid)
    with pytest.raises(ValueError, match="weight_scale of positive"):
        from_tensors({**whole, stored.SCALE: -whole[stored.SCALE]}, grid)
    with pytest.raises(ValueError, match="weight_scale as plain floats"):
        from_tensors({**whole, stored.SCALE: whole[stored.SCALE].int()}, grid)
    with pytest.raises(ValueError, match="weight_zero_point"):
        from_tensors(whole, Grid(4, 4, symmetric=False))
    with pytest.raises(ValueError, match="weight_packed"):
        from_tensors(whole, Grid(3, 4))
