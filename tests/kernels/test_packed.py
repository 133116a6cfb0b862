"""Packed products in C++ against plain PyTorch in float64, which is the oracle."""

import logging
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lors_cli import native
from lors_cli.kernels import packed as kernel
from lors_cli.sparsity import packed
from lors_cli.sparsity.packed import SPAN, Stored, pack
from tests.sparsity.test_packed import same_bits, sparse

needs_code = pytest.mark.skipif(
    kernel.library() is None, reason="needs AVX-512 with VBMI2 and BF16, and a C++ compiler"
)
# Tails of all kinds: of a byte, of a group's byte, of a register, of the columns of one step.
SHAPES = [(1, 1), (5, 9), (3, 12), (2, 31), (4, 64), (7, 124), (9, 128), (6, 132), (33, 200), (3, 4 * SPAN + 4)]


def weights(rows: int, columns: int, dtype: torch.dtype) -> list[tuple[Tensor, Stored]]:
    """In all layouts, with an empty row, a full one and an empty column; and one without any value."""
    empty = torch.zeros(rows, columns, dtype=dtype)
    made = [(empty, pack(empty, "bitmask"))]
    for pattern in ("0.5", "0.99", "2:4") if columns % 4 == 0 else ("0.5", "0.99"):
        weight = sparse(rows, columns, pattern, dtype)
        weight[0], weight[:, columns // 2] = 0, 0
        if pattern == "2:4":
            made.append((weight, pack(weight, "2:4")))
        else:
            weight[-1] = 1
        made += [(weight, pack(weight, "bitmask")), (weight, Stored(weight))]
    return made


@needs_code
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_products(shape: tuple[int, int], dtype: torch.dtype) -> None:
    for weight, stored in weights(*shape, dtype):
        for batch in range(10):
            x, bias = torch.randn(batch, shape[1]).to(dtype), torch.randn(shape[0]).to(dtype)
            for added in (None, bias):
                exact = F.linear(x.double(), weight.double(), None if added is None else added.double())
                torch.testing.assert_close(
                    kernel.multiply(stored, shape, x, added).double(),
                    exact,
                    rtol=2**-8 if dtype == torch.bfloat16 else 1e-5,
                    atol=1e-5 * shape[1] ** 0.5,
                )


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_dtypes_and_shapes_of_x(dtype: torch.dtype) -> None:
    weight = sparse(6, 20, "2:4", dtype)
    x = torch.randn(2, 3, 40).to(dtype)[..., ::2]
    got = kernel.multiply(pack(weight), (6, 20), x)
    torch.testing.assert_close(got, F.linear(x, weight), rtol=2e-3, atol=2e-3)
    with pytest.raises(RuntimeError, match="got"):
        kernel.multiply(pack(weight), (6, 20), x.float())
    with pytest.raises(RuntimeError, match="got"):
        kernel.multiply(pack(weight), (6, 20), x[..., :16])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_unpacking_is_exact(shape: tuple[int, int], dtype: torch.dtype) -> None:
    for weight, stored in weights(*shape, dtype):
        weight[-1, -4:] = 0
        weight[-1, -1] = -0.0
        stored = Stored(weight) if stored.layout == "dense" else pack(weight, stored.layout)
        assert same_bits(kernel.unpack(stored, shape), weight)
        assert same_bits(packed.unpack(stored, shape), weight)
        for first, end in pairwise(sorted({0, shape[0] // 2, shape[0]})):
            assert same_bits(kernel.unpack_rows(stored, shape, first, end), weight[first:end])


def test_threads_and_tiles_do_not_change_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = sparse(101, 512, "2:4")
    x = torch.randn(3, 512)
    monkeypatch.setattr(kernel, "SMALL", 0)
    for layout in packed.LAYOUTS:
        stored = pack(weight, layout)
        alone = kernel.multiply(stored, (101, 512), x), kernel.unpack(stored, (101, 512))
        torch.set_num_threads(2)
        both = kernel.multiply(stored, (101, 512), x), kernel.unpack(stored, (101, 512))
        torch.set_num_threads(1)
        assert torch.equal(alone[0], both[0])
        assert torch.equal(alone[1], both[1])
        monkeypatch.setattr(kernel, "TILE_BYTES", 10 * 512 * 4)
        many, bias = torch.randn(12, 512), torch.randn(101)
        for added in (None, bias):
            got = kernel.multiply(stored, (101, 512), many, added)
            torch.testing.assert_close(got, F.linear(many, weight, added))


@pytest.fixture
def anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty cache, and a kernel that was not looked for yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kernel.library.cache_clear()
    yield tmp_path / "lors/native"
    kernel.library.cache_clear()


@pytest.mark.parametrize("lacking", ["switch", "compiler", "broken compiler", "instructions"])
def test_what_is_lacking_is_said_once(
    anew: Path, lacking: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    names = {
        "switch": "LORS_NATIVE=0",
        "compiler": "no-such-compiler",
        "broken compiler": "false",
        "instructions": "avx",
    }
    if lacking == "switch":
        monkeypatch.setenv("LORS_NATIVE", "0")
    elif lacking == "instructions":
        monkeypatch.setattr(native, "_instructions", frozenset)
    else:
        monkeypatch.setattr(native, "_instructions", lambda: frozenset(kernel.INSTRUCTIONS))
        monkeypatch.setenv("CXX", names[lacking])
    weight = sparse(5, 24, "2:4")
    for layout in packed.LAYOUTS:
        stored, x = pack(weight, layout), torch.randn(2, 24)
        torch.testing.assert_close(kernel.multiply(stored, (5, 24), x), F.linear(x, weight))
        assert torch.equal(kernel.unpack(stored, (5, 24)), weight)
    said = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING and "slower" in r.getMessage()]
    assert len(said) == 1
    assert names[lacking] in said[0]
    assert not list(anew.glob("*.so"))
