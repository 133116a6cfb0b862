"""Products with 2:4 weights in Triton against float64: on the GPU where there is one, else in Triton's interpreter."""

from itertools import product

import pytest
import torch
from torch.nn import functional as F

from lors_cli.kernels import gemv
from lors_cli.kernels import packed as kernel
from lors_cli.sparsity.packed import Stored, pack
from tests.kernels.interpreter import needs_gpu, needs_triton, run_in_interpreter

SHAPES = [(1, 4), (7, 12), (4, 512), (9, 1100), (33, 260)]  # odd ends of a byte, of a turn and of a program's rows


def compare(shape: tuple[int, int], dtype: torch.dtype, device: str) -> None:
    torch.manual_seed(shape[0])
    weight = torch.randn(shape)
    weight.view(shape[0], -1, 4).scatter_(2, torch.rand(shape[0], shape[1] // 4, 4).argsort(-1)[..., :2], 0)
    if shape[0] > 2:
        weight[2], weight[:, 3] = 0, 0
    weight = weight.to(dtype)
    values, positions, *_ = pack(weight.to(device), "2:4")
    stored = Stored(values, positions)
    for batch in range(1, gemv.BATCH + 1):
        x, bias = torch.randn(batch, shape[1]).to(dtype), torch.randn(shape[0]).to(dtype)
        for added in (None, bias):
            given = x.to(device), None if added is None else added.to(device)
            if device == "cuda":
                assert gemv.available(stored, batch)
                y = kernel.multiply(stored, shape, given[0].view(1, *x.shape), given[1])[0]
            else:
                y = gemv.multiply(stored, shape, *given)
            exact = F.linear(x.double(), weight.double(), None if added is None else added.double())
            sizes = F.linear(x.double().abs(), weight.double().abs(), None if added is None else added.double().abs())
            assert y.dtype == dtype
            most = torch.finfo(dtype).eps * exact.abs() + 1e-6 * sizes
            assert bool(((y.cpu().double() - exact).abs() <= most).all())


@needs_triton
@needs_gpu
@pytest.mark.parametrize("shape", [*SHAPES, (1024, 14336)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_products_on_a_gpu(shape: tuple[int, int], dtype: torch.dtype) -> None:
    compare(shape, dtype, "cuda")


@needs_triton
def test_products_in_the_interpreter() -> None:
    run_in_interpreter("tests.kernels.test_gemv")


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("batch", [1, 8])
def test_compiles_for_gpus(capability: int, batch: int) -> None:
    from triton import compiler
    from triton.backends.compiler import GPUTarget

    constants = {"BATCH": batch, "ROWS": gemv.ROWS, "VALUES": gemv.VALUES // batch}
    signature = dict.fromkeys(("values", "x", "bias", "y"), "*bf16") | {"positions": "*u8"}
    signature |= dict.fromkeys(("rows", "columns", "batch"), "i32") | dict.fromkeys(constants, "constexpr")
    source = compiler.ASTSource(gemv._compiled, {name: signature[name] for name in gemv._compiled.arg_names}, constants)
    made = compiler.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": gemv.WARPS})
    assert made.asm["cubin"]


def test_not_for_other_weights() -> None:
    assert not gemv.available(pack(torch.eye(4)), 1)


def main() -> None:
    for shape, dtype in product(SHAPES, (torch.float32, torch.float16)):  # the interpreter knows no bfloat16
        compare(shape, dtype, "cpu")


if __name__ == "__main__":
    main()
