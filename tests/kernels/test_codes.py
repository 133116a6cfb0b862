"""Products with the codes of quantised weights against float64, and what they stand for, bit for bit."""

import pytest
import torch
from torch.nn import functional as F

from lors_cli.kernels import packed as kernel
from lors_cli.quantization.packed import pack
from lors_cli.quantization.packed import weight_rows as plain_rows
from lors_cli.quantization.stored import Quantized
from tests.kernels.test_packed import needs_code
from tests.quantization.test_packed import quantized

# Rows, columns, columns of a group: tails of a byte, of a group of four and of a step; groups within steps and beyond.
SHAPES = [(1, 4, 4), (3, 8, 8), (6, 132, 4), (9, 124, 4), (5, 288, 16), (4, 96, 32), (6, 192, 64), (3, 1024, 128)]
UNEVEN = [(5, 132, 132), (2, 30, 10), (3, 96, 96)]  # that the C++ code leaves to PyTorch
KINDS = [(True, "2:4"), (False, "2:4"), (True, "unstructured"), (False, "unstructured"), (True, "dense")]


def weight(shape: tuple[int, int, int], bits: int, *, symmetric: bool, pattern: str) -> Quantized:
    """With an empty row, an empty column and a full row."""
    if pattern == "2:4" and shape[1] % 4:
        pattern = "unstructured"
    one = quantized(*shape, bits, symmetric=symmetric, pattern=pattern)
    nothing = torch.zeros_like(one.scale) if one.zero_point is None else one.zero_point
    nothing = nothing.repeat_interleave(shape[2], dim=1).to(torch.int8)
    one.codes[0], one.codes[:, shape[1] // 2] = nothing[0], nothing[:, shape[1] // 2]
    if pattern == "unstructured":
        one.codes[-1] = torch.where(nothing[-1] == 0, -1, 0)
    return one


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", [3, 4, 6, 8])
def test_products_and_numbers(bits: int, dtype: torch.dtype) -> None:
    for shape in [*SHAPES, *UNEVEN]:
        rows, columns, _ = shape
        for symmetric, pattern in KINDS:
            one = weight(shape, bits, symmetric=symmetric, pattern=pattern)
            one = one._replace(scale=one.scale.to(dtype))
            exact, codes = one.weight(torch.float64), one.weight(dtype)
            for layout in (None, "bitmask", "dense"):
                stored = pack(one, layout)
                for first in (0, rows // 2):
                    got = kernel.weight_rows(stored, (rows, columns), first, rows, dtype)
                    assert torch.equal(got, codes[first:])
                for batch in range(10):
                    x, bias = torch.randn(batch, columns).to(dtype), torch.randn(rows).to(dtype)
                    y = kernel.multiply(stored, (rows, columns), x, bias).double()
                    sizes = F.linear(x.double().abs(), exact.abs(), bias.double().abs())
                    found = F.linear(x.double(), exact, bias.double())
                    by_codes = batch <= kernel.BATCH and shape in SHAPES and kernel.library() is not None
                    by_codes = by_codes and (bits <= 4 or symmetric)  # else of each weight and of the sum
                    half = (2.0**-8 * found.abs()) if by_codes else (2.0**-7 * sizes)
                    most = 1e-6 * sizes + (half if dtype == torch.bfloat16 else 0)
                    assert bool(((y - found).abs() <= most).all()), (shape, symmetric, pattern, layout, batch)


@needs_code
@pytest.mark.parametrize("bits", [4, 8])
def test_threads_and_tiles_do_not_change_the_numbers(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = (101, 512)
    one = quantized(*shape, 128, bits, symmetric=True, pattern="2:4")
    stored = pack(one._replace(scale=one.scale.float()))
    x, decoded = torch.randn(3, 512), plain_rows(stored, shape, 0, 101, torch.float32)
    monkeypatch.setattr(kernel, "SMALL", 0)
    alone = kernel.multiply(stored, shape, x)
    torch.set_num_threads(2)
    assert torch.equal(kernel.multiply(stored, shape, x), alone)
    assert torch.equal(kernel.weight_rows(stored, shape, 0, 101, torch.float32), decoded)
    torch.set_num_threads(1)
    monkeypatch.setattr(kernel, "TILE_BYTES", 10 * 512 * 4)
    many = torch.randn(12, 512)
    torch.testing.assert_close(kernel.multiply(stored, shape, many), F.linear(many, decoded))


def test_inputs_have_the_dtype_of_the_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    one = quantized(4, 64, 32, 8, symmetric=True, pattern="dense")
    stored, x = pack(one), torch.randn(2, 64)
    with pytest.raises(RuntimeError, match=r"torch\.bfloat16 on cpu, got"):
        kernel.multiply(stored, (4, 64), x)
    for dtype in (torch.float16, torch.float64):  # which the C++ code does not multiply with
        other = stored._replace(scale=one.scale.to(dtype))
        expected = F.linear(x.to(dtype), one.weight(dtype))
        torch.testing.assert_close(kernel.multiply(other, (4, 64), x.to(dtype)), expected)
    monkeypatch.setattr(kernel, "library", lambda: None)
    plain = stored._replace(scale=one.scale.float())
    torch.testing.assert_close(kernel.multiply(plain, (4, 64), x), F.linear(x, one.weight(torch.float32)))
