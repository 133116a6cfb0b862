"""Multiply-adds and saved bytes of every method, exactly: the table of docs/performance.md, by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from lors_cli.adapters import METHODS
from lors_cli.adapters.base import Adapter
from lors_cli.adapters.lors import Operands
from lors_cli.sparsity.packed import Stored
from tests.adapters.common import saved_for_backward

R, C, N, RANK = 192, 256, 128, 8
GEMM, MERGE, OUT, IN = R * C * N, RANK * R * C, RANK * R * N, RANK * C * N

# formulation, checkpointing -> multiply-adds forward and backward; bytes kept in bf16 besides X and parameters
COUNTS: dict[tuple[str, str, Any], tuple[int, int, int]] = {
    ("lora", "eager", False): (GEMM + IN + OUT, GEMM + 2 * IN + 2 * OUT, 2 * RANK * N),
    ("sqft", "listing", False): (GEMM + MERGE, 2 * GEMM + 2 * MERGE, 3 * R * C),
    ("sqft", "listing", True): (GEMM + MERGE, 2 * GEMM + 3 * MERGE, 0),
    ("sqft", "listing", "reentrant"): (GEMM + MERGE, 3 * GEMM + 3 * MERGE, 0),
    ("spp", "listing", False): (2 * GEMM, 3 * GEMM, 6 * R * C),
    ("spp", "listing", True): (2 * GEMM, 3 * GEMM, 0),
    ("spp", "listing", "reentrant"): (2 * GEMM, 4 * GEMM, 0),
    ("spp", "columns", False): (2 * GEMM, 2 * GEMM, 2 * R * N),
    ("spp", "merged", False): (GEMM, 2 * GEMM, 0),
    ("full", "masked", False): (GEMM, 2 * GEMM, 3 * R * C),
    ("lors", "listing", False): (GEMM + MERGE, GEMM + MERGE + 2 * OUT + 2 * IN, 0),
    ("lors", "fused", False): (GEMM + MERGE, GEMM + MERGE + 2 * OUT + 2 * IN, 0),
}


def make(method: str, formulation: str, checkpoint: Any, dtype: torch.dtype) -> Adapter:
    torch.manual_seed(0)
    linear = nn.Linear(C, R, bias=False, dtype=dtype)
    linear.weight.data[torch.rand(R, C) < 0.5] = 0
    options = {"adapter_checkpointing": checkpoint} if checkpoint else {}
    return METHODS[method].formulation(formulation).adapter(linear, rank=RANK, alpha=16, **options)


@pytest.mark.parametrize("case", COUNTS, ids=lambda case: "-".join(map(str, case)))
def test_multiply_adds_are_exactly_as_derived(case: tuple[str, str, Any]) -> None:
    adapter = make(*case, torch.float32)
    x = torch.randn(N, C, requires_grad=True)
    with FlopCounterMode(display=False) as forward:
        y = adapter(x)
    with FlopCounterMode(display=False) as backward:
        y.sum().backward()
    assert (forward.get_total_flops(), backward.get_total_flops()) == (2 * COUNTS[case][0], 2 * COUNTS[case][1])


@pytest.mark.parametrize("case", COUNTS, ids=lambda case: "-".join(map(str, case)))
def test_saved_bytes_are_exactly_as_derived(case: tuple[str, str, Any]) -> None:
    adapter = make(*case, torch.bfloat16)
    x = torch.randn(N, C, dtype=torch.bfloat16, requires_grad=True)
    _, saved = saved_for_backward(lambda: adapter(x))
    own = {p.untyped_storage().data_ptr() for p in [*adapter.parameters(), x]}
    extra = [s.nbytes() for s in (t.untyped_storage() for t in saved) if s.data_ptr() not in own]
    # the factors, float32 parameters, are also kept in the dtype that they are multiplied in
    factors = (2 * RANK * C, 2 * RANK * R, 2 * R)
    assert sum(size for size in extra if size not in factors) == COUNTS[case][2]


def test_every_formulation_is_counted() -> None:
    counted = {case[:2] for case in COUNTS}
    assert counted == {(name, way) for name, row in METHODS.items() for way in row.formulations}


class Traffic(TorchDispatchMode):
    """Adds up the bytes of the tensors that each operation reads and writes, as the dispatcher sees them."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func not in (torch.ops.aten.t.default, torch.ops.aten.detach.default):
            tensors = [t for t in [*args, result] if isinstance(t, Tensor)]
            if func is torch.ops.aten.addmm.default:  # a copy of W into the result, then a product added to it
                tensors += [result, result]
            self.bytes += sum(t.numel() * t.itemsize for t in tensors)
        return result


def test_the_fused_merge_moves_4_bytes_a_weight_and_the_listing_16() -> None:
    from lors_cli.adapters.lors_listing import listed_weight

    weight = torch.randn(R, C).bfloat16()
    a, b = torch.randn(RANK, C).bfloat16(), torch.randn(R, RANK).bfloat16()
    factors = a.numel() + b.numel()
    exact_a, exact_b = a.float(), b.float()
    with Traffic() as fused:
        torch.ops.lors.effective_weight(torch.bfloat16, *Operands(*Stored(weight), exact_a, exact_b, None, 0.5, -1))
    with Traffic() as listing:
        listed_weight(weight, a, b, 0.5)
    assert fused.bytes - 4 * factors == 4 * R * C
    assert listing.bytes - 2 * factors == 16 * R * C
