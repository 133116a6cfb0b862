from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from lors_cli.adapters import effective_weight
from lors_cli.adapters.effective_cache import EffectiveCache
from lors_cli.adapters.effective_weight import EffectiveWeight
from lors_cli.adapters.lors import LoRS

EVERYTHING = 1 << 40


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts in its only element how often rows are made; the weights here are one block of rows each."""
    count, fill = [0], EffectiveWeight._fill

    def counted(self: EffectiveWeight, *args: Any) -> Tensor:
        count[0] += 1
        return fill(self, *args)

    monkeypatch.setattr(EffectiveWeight, "_fill", counted)
    return count


class Blocks(nn.Module):
    """Three blocks of two linears each."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        blocks = ([self.linear(8, 12, dtype), nn.Tanh(), self.linear(12, 8, dtype)] for _ in range(3))
        self.blocks = nn.ModuleList(nn.Sequential(*block) for block in blocks)

    @staticmethod
    def linear(columns: int, rows: int, dtype: torch.dtype) -> LoRS:
        linear = nn.Linear(columns, rows, dtype=dtype)
        linear.weight.data[torch.rand(rows, columns) < 0.5] = 0
        adapter = LoRS(linear, rank=2, alpha=2)
        nn.init.normal_(adapter.lora_B, std=0.1)
        return adapter

    @property
    def adapters(self) -> dict[str, LoRS]:
        return {name: module for name, module in self.named_modules() if isinstance(module, LoRS)}

    @property
    def first(self) -> LoRS:
        return next(iter(self.adapters.values()))

    def forward(self, x: Tensor, checkpointing: bool = False) -> Tensor:
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if checkpointing else block(x)
        return x


def cached(
    model: Blocks, dtype: torch.dtype = torch.float32, budget: int = EVERYTHING, passing: int = 0
) -> EffectiveCache:
    cache = EffectiveCache()
    cache.serve(model.adapters, dtype)
    cache.allot(budget, passing)
    return cache


def train(
    model: Blocks,
    checkpointing: bool,
    dtype: torch.dtype,
    steps: int = 3,
    after: Callable[[int], None] = lambda _: None,
) -> list[Tensor]:
    """Losses and final parameters of a few steps of two micro-batches."""
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    torch.manual_seed(1)
    seen = []
    for step in range(steps):
        for _ in range(2):
            x = torch.randn(5, 8, dtype=dtype, requires_grad=True)
            loss = model(x, checkpointing).square().mean()
            loss.backward()
            seen += [loss.detach(), x.grad]
        after(step)
        optimizer.step()
        optimizer.zero_grad()
    return [t for t in seen if t is not None] + [p.detach() for p in model.parameters()]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("budget", "passing"), [(EVERYTHING, 0), (1000, 600), (0, 0)])
def test_equals_the_uncached_run_bit_for_bit(
    checkpointing: bool, dtype: torch.dtype, budget: int, passing: int
) -> None:
    plain = train(Blocks(dtype), checkpointing, dtype)
    model = Blocks(dtype)
    cache = cached(model, dtype, budget, passing)
    for ours, wanted in zip(train(model, checkpointing, dtype), plain, strict=True):
        assert torch.equal(ours, wanted)
    assert (cache.hits > 0) == (budget > 0)


@pytest.mark.parametrize(
    ("budget", "passing", "checkpointing", "expected"),
    [
        (EVERYTHING, 0, False, 6),  # once a linear
        (EVERYTHING, 0, True, 6),
        (0, 0, False, 6 * 2 * 2),  # forward and backward of both micro-batches
        (0, 0, True, 6 * 2 * 3),  # the recomputation too
        # one block at a time: the backward uses what the recomputation made, and the last block's recomputation what
        # its first forward made
        (768, 768, True, 6 * 2 * 2 - 2 * 2),
    ],
)
def test_weights_made_per_step(made: list[int], budget: int, passing: int, checkpointing: bool, expected: int) -> None:
    model = Blocks()
    cache = cached(model, budget=budget, passing=passing)
    counts: list[int] = []
    train(model, checkpointing, torch.float32, after=lambda _: counts.append(made[0]))
    assert [b - a for a, b in zip([0, *counts], counts, strict=False)] == [expected] * 3
    assert cache.made == made[0]


def test_flops_of_a_kept_weight_leave_its_making_out() -> None:
    model = Blocks()
    adapter = model.first
    cached(model)
    x = torch.randn(5, 8, requires_grad=True)
    rows, columns, rank, tokens = 12, 8, 2, 5
    with FlopCounterMode(display=False) as first:
        adapter(x)
    with FlopCounterMode(display=False) as second:
        y = adapter(x)
    with FlopCounterMode(display=False) as backward:
        y.sum().backward()
    gemm = rows * columns * tokens
    assert first.get_total_flops() == 2 * (gemm + rank * rows * columns)
    assert second.get_total_flops() == 2 * gemm
    assert backward.get_total_flops() == 2 * (gemm + 2 * rank * tokens * (rows + columns))


def without_a_slot(module: Blocks | LoRS, x: Tensor) -> Tensor:
    """What comes out when every effective weight is made anew."""
    for adapter in module.modules():
        if isinstance(adapter, LoRS):
            adapter.slot = None
    y: Tensor = module(x)
    return y


@pytest.mark.parametrize("inference", [False, True])  # what inference mode made cannot be written to outside of it
@pytest.mark.parametrize("name", ["lora_A", "lora_B", "weight", "data"])
def test_any_change_of_an_operand_is_seen(name: str, inference: bool) -> None:
    model = Blocks()
    cache = cached(model)
    adapter, x = model.first, torch.randn(5, 8)
    with torch.inference_mode(inference):
        before = adapter(x).clone()
    if name == "data":  # which no version counter sees
        adapter.lora_B.data.mul_(2)
        cache.expire()
    else:
        with torch.no_grad():
            (adapter.linear.weight if name == "weight" else adapter.tensors()[name]).mul_(2)
    after = adapter(x)
    after.sum().backward()
    assert torch.equal(after, without_a_slot(adapter, x))
    assert not torch.equal(after, before)


def test_replaced_parameters_are_seen_even_at_the_same_address() -> None:
    model = Blocks()
    cached(model)
    adapter = model.first
    x = torch.randn(5, 8)
    for _ in range(20):
        adapter.lora_B = nn.Parameter(torch.randn(12, 2))  # the old one's memory would be free for the next
        kept = adapter(x)
        slot, adapter.slot = adapter.slot, None
        assert torch.equal(kept, adapter(x))
        adapter.slot = slot


def test_keeps_the_largest_that_fit() -> None:
    torch.manual_seed(0)
    adapters = {str(rows): Blocks.linear(8, rows, torch.float32) for rows in (8, 32, 16)}
    cache = EffectiveCache()
    cache.serve(adapters, torch.float32)
    assert cache.bytes == 8 * 56 * 4
    for budget, resident in [(0, []), (8 * 8 * 4, ["8"]), (8 * 40 * 4, ["8", "32"]), (8 * 56 * 4, ["8", "32", "16"])]:
        cache.allot(budget)
        assert cache.resident == resident
    for adapter in adapters.values():
        adapter(torch.randn(1, 8))
    assert sum(slot.weight is not None for slot in cache.slots.values()) == 3
    cache.clear()
    assert all(slot.weight is None for slot in cache.slots.values())


def test_without_its_cache_a_linear_goes_on() -> None:
    model = Blocks()
    cached(model)  # nobody holds it but the adapters
    x = torch.randn(2, 8)
    wanted = model(x)
    assert torch.equal(without_a_slot(model, x), wanted)


def test_blocks_of_rows_are_the_whole_to_the_last_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        effective_weight, "MADE_BYTES", 4 * 20 * 3
    )  # three rows of 20 at a time, multiplied with twelve
    monkeypatch.setattr(effective_weight, "MULTIPLIED_BYTES", 4 * 20 * 13)
    torch.manual_seed(0)
    adapter = Blocks.linear(20, 50, torch.float32)
    x = torch.randn(7, 20, requires_grad=True)
    plain = adapter(x)
    plain.square().sum().backward()
    wanted, x.grad = [plain, x.grad, adapter.lora_A.grad], None
    adapter.lora_A.grad = None
    cache = EffectiveCache()
    cache.serve({"": adapter}, torch.float32)
    cache.allot(EVERYTHING)
    for _ in range(2):
        x.grad = adapter.lora_A.grad = None
        kept = adapter(x)
        kept.square().sum().backward()
        for ours, one in zip([kept, x.grad, adapter.lora_A.grad], wanted, strict=True):
            assert ours is not None
            assert one is not None
            assert torch.equal(ours, one)


def test_another_dtype_gets_memory_of_its_own() -> None:
    model = Blocks()
    cached(model)
    x = torch.randn(5, 8)
    for _ in range(2):
        plain = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            cast = model(x)
    assert torch.equal(plain, without_a_slot(model, x))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(cast, model(x))
