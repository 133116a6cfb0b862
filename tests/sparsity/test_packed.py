import pytest
import torch
from torch import Tensor

from lors_cli.sparsity.packed import SPAN, Stored, pack, packed_bytes, starts_of, unpack, unpack_rows

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def sparse(rows: int, columns: int, pattern: str, dtype: torch.dtype = torch.float32) -> Tensor:
    torch.manual_seed(rows * columns)
    weight = torch.randn(rows, columns)
    if pattern == "2:4":
        drop = torch.rand(rows, columns // 4, 4).argsort(dim=-1) < 2
        weight[drop.view(rows, columns)] = 0
    else:
        weight[torch.rand(rows, columns) < float(pattern)] = 0
    return weight.to(dtype)


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(8, 16), (3, 12), (5, 20), (1, 4), (7, 4 * SPAN + 4)])
@pytest.mark.parametrize("layout", ["2:4", "bitmask"])
def test_round_trip_is_exact(shape: tuple[int, int], dtype: torch.dtype, layout: str) -> None:
    weight = sparse(*shape, "2:4", dtype)
    weight[0] = 0
    weight[-1, :4] = torch.tensor([0.0, torch.finfo(dtype).tiny / 4, -0.0, 0.0]).to(dtype)  # a denormal, a -0.0
    stored = pack(weight, layout)
    assert stored.layout == layout
    assert same_bits(unpack(stored, shape), weight)
    middle = shape[0] // 2
    assert same_bits(unpack_rows(stored, shape, middle, shape[0]), weight[middle:])
    assert same_bits(unpack_rows(stored, shape, 0, middle), weight[:middle])


@pytest.mark.parametrize("shape", [(4, 9), (6, 1), (2, 3 * SPAN - 1), (1, SPAN), (9, 30)])
@pytest.mark.parametrize("pattern", ["0.5", "0.01", "0.99"])
def test_bitmask_of_any_shape(shape: tuple[int, int], pattern: str) -> None:
    weight = sparse(*shape, pattern, torch.bfloat16)
    stored = pack(weight)
    assert stored.layout == "bitmask"
    assert same_bits(unpack(stored, shape), weight)
    assert stored.bytes == packed_bytes(weight)
    # by hand: where each span of columns begins among the values, and each weight's bit
    assert stored.positions is not None
    for i in range(shape[0]):
        for j in range(shape[1]):
            assert bool(stored.positions[i, j // 8] >> (j % 8) & 1) == bool(weight[i, j] != 0)
            if j % SPAN == 0:
                before = int((weight[:i] != 0).sum() + (weight[i, :j] != 0).sum())
                assert stored.starts is not None
                assert int(stored.starts[i, j // SPAN]) == before


def test_places_of_2_4_by_hand() -> None:
    weight = torch.tensor([[0, 5, 0, 6, 7, 0, 0, 0, 0, 0, 8, 0.0]])
    values, positions, *_ = pack(weight, "2:4")
    assert values.tolist() == [[5, 6, 7, 0, 0, 8]]
    assert positions is not None
    # (1, 3), (0, 1), (0, 2): four bits a group, the lower place in the lower bits, the first group in the lower half
    assert positions.tolist() == [[(1 | 3 << 2) | (0 | 1 << 2) << 4, 0 | 2 << 2]]


def test_both_layouts_take_nine_sixteenths_at_half_sparsity() -> None:
    weight = sparse(64, 4096, "2:4", torch.bfloat16)
    dense = weight.numel() * 2
    assert pack(weight, "2:4").bytes == dense * 9 / 16
    assert pack(weight, "bitmask").bytes == pytest.approx(dense * 9 / 16, rel=0.02)
    assert pack(weight).layout == "2:4"
    assert pack(sparse(64, 4096, "0.8", torch.bfloat16) * 0 + 1).layout == "bitmask"
    quarter = weight.clone()
    quarter.view(-1, 4)[:, :2] = 0  # fits 2:4, but most groups hold one value: a bitmask is smaller
    assert pack(quarter).layout == "bitmask"


def test_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="at most 2 nonzeros in every 4 inputs, got 2 groups"):
        pack(torch.ones(1, 8), "2:4")
    with pytest.raises(ValueError, match="4 divides, got 6"):
        pack(torch.zeros(2, 6), "2:4")


def test_starts_follow_from_the_positions() -> None:
    stored = pack(sparse(5, 600, "0.4"), "bitmask")
    assert stored.positions is not None
    assert stored.starts is not None
    assert torch.equal(starts_of(stored.positions, 600), stored.starts)


def test_dense_is_a_view() -> None:
    weight = torch.randn(4, 6)
    assert unpack_rows(Stored(weight), (4, 6), 1, 3).data_ptr() == weight[1].data_ptr()
