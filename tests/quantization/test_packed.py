"""The forms in memory, against the codes that they are made of."""

import pytest
import torch

from lors_cli.quantization.grid import Grid, codes_of, fit
from lors_cli.quantization.packed import codes_rows, pack, weight_rows
from lors_cli.quantization.stored import Quantized

SHAPES = [(13, 24, 12), (5, 15, 5), (3, 516, 129), (1, 4, 4)]  # rows, columns, columns of a group


def quantized(rows: int, columns: int, group_size: int, bits: int, *, symmetric: bool, pattern: str) -> Quantized:
    weight = torch.randn(rows, columns)
    if pattern == "2:4":
        weight.view(-1, 4)[:, [0, 2]] = 0
    if pattern == "unstructured":
        weight[torch.rand(rows, columns) < 0.7] = 0
    grid = Grid(bits, group_size, symmetric)
    scales = fit(weight, grid, torch.bfloat16)
    return Quantized(codes_of(weight, scales, grid), *scales, grid)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", [2, 4, 5, 8])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("pattern", ["2:4", "unstructured", "dense"])
def test_every_range_of_rows_comes_back(shape: tuple[int, int, int], bits: int, symmetric: bool, pattern: str) -> None:
    if pattern == "2:4" and shape[1] % 4:
        pytest.skip("no whole groups of four")
    rows, columns, _ = shape
    weight = quantized(*shape, bits, symmetric=symmetric, pattern=pattern)
    for layout in (None, "dense", "bitmask"):
        stored = pack(weight, layout)
        assert stored.layout == (layout or {"unstructured": stored.layout, "2:4": "2:4"}.get(pattern, stored.layout))
        for first in range(rows):
            for end in (first + 1, rows):
                assert torch.equal(codes_rows(stored, (rows, columns), first, end), weight.codes[first:end])
        decoded = weight_rows(stored, (rows, columns), 0, rows, torch.float32)
        assert torch.equal(decoded, weight.weight(torch.float32))


def test_the_smallest_layout_is_taken() -> None:
    for bits in (4, 8):
        a_weight = {"2:4": 1.125 + bits / 2, "dense": 0.125 + bits}
        for pattern, layout in (("2:4", "2:4"), ("unstructured", "bitmask"), ("dense", "dense")):
            stored = pack(quantized(64, 512, 128, bits, symmetric=True, pattern=pattern))
            assert stored.layout == layout
            assert pattern not in a_weight or stored.bytes * 8 == a_weight[pattern] * 64 * 512


def test_other_patterns_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 2 nonzeros in every 4"):
        pack(quantized(4, 8, 4, 4, symmetric=True, pattern="dense"), "2:4")
