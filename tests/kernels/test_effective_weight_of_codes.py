"""The kernel on quantised weights against the plain version: on the GPU where there is one, else in the interpreter."""

from itertools import product
from typing import Any

import pytest
import torch

from lors_cli.adapters.effective_weight import EffectiveWeight
from lors_cli.kernels import effective_weight as kernel
from lors_cli.quantization.grid import Grid, codes_of, fit
from lors_cli.quantization.packed import pack
from lors_cli.quantization.stored import Quantized
from tests.kernels.interpreter import needs_gpu, needs_triton, run_in_interpreter

# rows, columns, columns of a group, rank
SHAPES = [(1, 4, 4, 1), (7, 12, 6, 3), (64, 128, 32, 16), (35, 260, 130, 17), (9, 520, 8, 40), (5, 15, 5, 2)]
LAYOUTS = ["dense", "2:4", "bitmask"]
Case = tuple[tuple[int, int, int, int], str, bool, int]


def quantized(rows: int, columns: int, group_size: int, layout: str, *, symmetric: bool, bits: int) -> Quantized:
    weight = torch.randn(rows, columns) * 0.02 + 0.004
    if layout == "2:4":
        weight.view(rows, -1, 4)[:, :, [1, 2]] = 0
    if layout == "bitmask":
        weight[torch.rand(rows, columns) < 0.5] = 0
    grid = Grid(bits, group_size, symmetric)
    scales = fit(weight, grid, torch.bfloat16)
    return Quantized(codes_of(weight, scales, grid), *scales, grid)


def compare(case: Case, out: torch.dtype, device: str, *, aware: bool) -> None:
    (rows, columns, group_size, rank), layout, symmetric, bits = case
    torch.manual_seed(rows * columns)
    weight = quantized(rows, columns, group_size, layout, symmetric=symmetric, bits=bits)
    stored = pack(weight, layout)
    stored = stored._replace(scale=weight.scale.float() if device == "cpu" else weight.scale)  # see `main`
    parts: list[Any] = [None if tensor is None else tensor.to(device) for tensor in stored]
    stored = type(stored)(*parts)
    a, b = torch.randn(rank, columns, device=device), torch.randn(rows, rank, device=device) * 1e-2
    plain = EffectiveWeight(stored, a, b, 1 / 3, None, out, bits=bits if aware else 0)
    wanted = plain._fill(torch.empty(rows, columns, dtype=out, device=device), 0)
    made = kernel.write(stored, a, b, 1 / 3, None, torch.empty_like(wanted), plain.bits)
    assert not made[~weight.mask().to(device)].any()
    if aware:
        assert torch.equal(made, wanted)
        if rows > 1:
            assert not torch.equal(made.cpu(), weight.weight(out))  # the update has moved some
    else:
        precision = torch.finfo(out).eps
        assert ((made.double() - wanted.double()).abs() <= wanted.double().abs() * precision + 6e-8).all()
        assert (made == wanted).float().mean() > (0.2 if out == torch.float32 else 0.99)


CASES = [case for case in product(SHAPES, LAYOUTS, [False, True], [3, 4]) if case[1] != "2:4" or case[0][1] % 4 == 0]


@needs_triton
@needs_gpu
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("aware", [False, True])
def test_equals_the_plain_version_on_a_gpu(case: Case, aware: bool) -> None:
    assert kernel.available(torch.zeros(1, device="cuda", dtype=torch.uint8), torch.bfloat16)
    compare(case, torch.bfloat16 if case[3] == 4 else torch.float32, "cuda", aware=aware)


@needs_triton
def test_equals_the_plain_version_in_the_interpreter() -> None:
    run_in_interpreter("tests.kernels.test_effective_weight_of_codes")


@needs_triton
@pytest.mark.parametrize(
    ("layout", "bits", "zero_point"), [("dense", 0, True), ("2:4", 4, False), ("2:4", 0, False), ("bitmask", 4, True)]
)
def test_compiles_for_gpus(layout: str, bits: int, zero_point: bool) -> None:
    from triton import compiler
    from triton.backends.compiler import GPUTarget

    rows, columns = (kernel.TILES_ON_GRID if bits else kernel.TILES)[layout]
    factor = "*fp64" if bits else "*fp32"
    pointers = {"values": "*u8", "positions": "*u8", "starts": "*i32", "grid_scale": "*bf16", "zero_point": "*i8"}
    pointers |= {"lora_A": factor, "lora_B": factor}
    constants = {"LAYOUT": layout, "PRECISION": "tf32x3", "ROWS": rows, "COLUMNS": columns, "RANK": 16}
    constants |= {"GROUP": 128, "BITS": bits, "FACTOR_0": 0x7FEB352D, "FACTOR_1": 0x846CA68B}
    signature = pointers | {"seed": "constexpr", "into": "*bf16"} | dict.fromkeys(("rows", "columns", "rank"), "i32")
    signature |= {"scale": "fp32"} | dict.fromkeys(constants, "constexpr")
    absent = {"dense": ("positions", "starts"), "2:4": ("starts",), "bitmask": ()}[layout]
    absent += ("seed",) if zero_point else ("seed", "zero_point")
    signature |= dict.fromkeys(absent, "constexpr")
    source = compiler.ASTSource(kernel._compiled, signature, constants | dict.fromkeys(absent, None))
    made = compiler.compile(source, target=GPUTarget("cuda", 80, 32), options={"num_warps": kernel.WARPS})
    assert made.asm["cubin"]


def main() -> None:
    # the interpreter knows no bfloat16, neither as a result nor as a scale
    for case, aware in product(CASES, [False, True]):
        if case[3] == 4 or case[2]:  # 3 bits differ in where they are cut off
            compare(case, torch.float16 if case[2] else torch.float32, "cpu", aware=aware)


if __name__ == "__main__":
    main()
