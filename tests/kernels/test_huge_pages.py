"""Weights in slabs of huge pages: the same numbers, apart from each other, freed with their model."""

import gc
import mmap
import weakref
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pytest
import torch

from lors_cli.kernels import huge_pages

pytestmark = pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="this system knows no huge pages")


@pytest.fixture(autouse=True)
def small_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huge_pages, "SLAB", huge_pages.PAGE)
    monkeypatch.setattr(huge_pages, "_current", None)


def weights() -> list[torch.Tensor]:
    """Of several dtypes and sizes, in a new order of memory, one of them larger than a slab."""
    shapes = [(65, 67), (1, 5000), (1024, 33), (2048, 1100), (300, 301)]
    made = [
        torch.randn(columns, rows).to(dtype).t()
        for rows, columns in shapes
        for dtype in (torch.bfloat16, torch.float32)
    ]
    return [*made, torch.randint(-8, 8, (999, 1001), dtype=torch.int8)]


def test_the_numbers_are_the_same_and_apart() -> None:
    given = weights()
    made = [huge_pages.placed(weight) for weight in given]
    for before, after in zip(given, made, strict=True):
        assert torch.equal(before, after)
        assert after.dtype == before.dtype
        assert after.is_contiguous()
        assert after.data_ptr() % huge_pages.LINE == 0
    ranges = sorted((one.data_ptr(), one.data_ptr() + one.nbytes) for one in made)
    assert all(end <= start for (_, end), (start, _) in pairwise(ranges))
    assert all(one.untyped_storage().nbytes() == one.nbytes for one in made)


def test_many_threads_get_memory_of_their_own() -> None:
    given = [torch.full((4096 + number,), number % 100, dtype=torch.int8) for number in range(3000)]
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(huge_pages.placed, given))
    assert all(map(torch.equal, given, made))


def test_what_is_small_stays_where_it_is() -> None:
    small = torch.zeros(huge_pages.LEAST // 4 - 1)
    assert huge_pages.placed(small) is small
    meta = torch.zeros(1 << 20, device="meta")
    assert huge_pages.placed(meta) is meta


def test_a_slab_is_freed_with_its_last_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    slabs: list[weakref.ref[Any]] = []

    class Mapped(mmap.mmap):
        def __new__(cls, *arguments: Any, **options: Any) -> Any:
            made = super().__new__(cls, *arguments, **options)
            slabs.append(weakref.ref(made))
            return made

    monkeypatch.setattr(mmap, "mmap", Mapped)
    first, second, third = (huge_pages.placed(torch.ones(huge_pages.PAGE // 2, dtype=torch.uint8)) for _ in range(3))
    assert len(slabs) == 2
    del first
    gc.collect()
    assert slabs[0]() is not None
    del second
    gc.collect()
    assert slabs[0]() is None
    assert third.all()


def test_a_system_that_refuses_them_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huge_pages, "_ADVICE", 12345)
    weight = torch.randn(100, 100)
    assert torch.equal(huge_pages.placed(weight), weight)
    monkeypatch.setattr(huge_pages, "_ADVICE", None)
    assert huge_pages.placed(weight) is weight
