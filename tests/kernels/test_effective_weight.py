"""The kernel against the plain version: on the GPU where there is one, else in Triton's interpreter."""

from itertools import product

import pytest
import torch
from torch import Tensor

from lors_cli.adapters.effective_weight import EffectiveWeight
from lors_cli.kernels import effective_weight as kernel
from lors_cli.sparsity.packed import Stored, pack
from tests.kernels.interpreter import needs_gpu, needs_triton, run_in_interpreter

SHAPES = [(1, 4, 1), (7, 12, 3), (64, 128, 16), (65, 260, 17), (33, 300, 40), (70, 132, 64)]  # rows, columns, rank
LAYOUTS = ["dense", "2:4", "bitmask"]


def problem(rows: int, columns: int, rank: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(rows * columns)
    weight = torch.randn(rows, columns) * 0.02
    weight[(torch.rand(rows, columns // 4, 4).argsort(dim=-1) < 2).view(rows, columns)] = 0
    weight[0, :4] = torch.tensor([0.0, -0.0, 1e-3, 0.0])
    if rows > 2:
        weight[2] = 0
    return weight.to(dtype), torch.randn(rank, columns), torch.randn(rows, rank) * 1e-2


def stored_as(layout: str, weight: Tensor) -> Stored:
    return Stored(weight) if layout == "dense" else pack(weight, layout)


def compare(
    shape: tuple[int, int, int], layout: str, dtype: torch.dtype, out: torch.dtype, device: str, seed: int | None = None
) -> None:
    weight, a, b = (tensor.to(device) for tensor in problem(*shape, dtype))
    stored, scale = stored_as(layout, weight), 0.37
    given = None if seed is None else torch.tensor(seed, device=device)
    effective = kernel.write(stored, a, b, scale, given, torch.empty(shape[:2], dtype=out, device=device))
    assert effective.dtype == out
    assert effective.shape == weight.shape
    assert not effective[weight == 0].any()
    update = ((b * scale).double() @ a.double()).float()
    exact = torch.where(weight != 0, weight.float() + update, torch.zeros_like(update))
    if seed is not None:
        # one of the two neighbours, and the plain version's choice wherever their float32 sums are the same
        assert ((effective.float() - exact).abs() <= exact.abs() * 2**-7 + 1e-8).all()
        plain = EffectiveWeight(stored, a, b, scale, given, torch.bfloat16).make()
        assert (effective.float() == plain.float()).float().mean() > 0.99
        return
    # one rounding: at most one unit in the last place (of float16's denormals, 6e-8) from the exact sum, mostly none
    wanted = exact.to(out)
    assert ((effective.float() - wanted.float()).abs() <= exact.abs() * torch.finfo(out).eps + 6e-8).all()
    assert (effective == wanted).float().mean() > (0.2 if out == torch.float32 else 0.99)


GPU_CASES = list(product(SHAPES, LAYOUTS, kernel.OUTPUTS))


@needs_triton
@needs_gpu
@pytest.mark.parametrize("case", GPU_CASES)
def test_equals_the_plain_version_on_a_gpu(case: tuple[tuple[int, int, int], str, torch.dtype]) -> None:
    shape, layout, dtype = case
    assert kernel.available(torch.zeros(1, device="cuda", dtype=dtype), dtype)
    compare(shape, layout, dtype, dtype, "cuda")
    if dtype == torch.bfloat16:
        compare(shape, layout, dtype, dtype, "cuda", seed=11)


@needs_triton
def test_equals_the_plain_version_in_the_interpreter() -> None:
    run_in_interpreter("tests.kernels.test_effective_weight")


@needs_triton
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("capability", [80, 90])
def test_compiles_for_gpus(layout: str, capability: int) -> None:
    from triton import compiler
    from triton.backends.compiler import GPUTarget

    rows, columns = kernel.TILES[layout]
    pointers = {"values": "*bf16", "positions": "*u8", "starts": "*i32", "lora_A": "*fp32", "lora_B": "*fp32"}
    constants = {"LAYOUT": layout, "PRECISION": "tf32x3", "ROWS": rows, "COLUMNS": columns, "RANK": 16}
    constants |= {"GROUP": 0, "BITS": 0, "FACTOR_0": 0x7FEB352D, "FACTOR_1": 0x846CA68B}
    signature = pointers | {"seed": "*i64", "into": "*bf16"} | dict.fromkeys(("rows", "columns", "rank"), "i32")
    signature |= {"scale": "fp32"} | dict.fromkeys(constants, "constexpr")
    absent = {"dense": ("positions", "starts"), "2:4": ("starts",), "bitmask": ()}[layout]
    absent += ("grid_scale", "zero_point")
    signature |= dict.fromkeys(absent, "constexpr")
    source = compiler.ASTSource(kernel._compiled, signature, constants | dict.fromkeys(absent, None))
    made = compiler.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": kernel.WARPS})
    assert made.asm["cubin"]


def test_not_for_other_devices_or_dtypes() -> None:
    assert not kernel.available(torch.zeros(1), torch.float32)


def main() -> None:
    # the interpreter knows no bfloat16: the rounding to it is looked at in a float32 result
    for shape, layout in product(SHAPES, LAYOUTS):
        for dtype in (torch.float32, torch.float16):
            compare(shape, layout, dtype, dtype, "cpu")
        compare(shape, layout, torch.float32, torch.float16, "cpu")
        compare(shape, layout, torch.float32, torch.float32, "cpu", seed=11)


if __name__ == "__main__":
    main()
