import pytest
import torch

from lors_cli.adapters import METHODS, fit


@pytest.mark.parametrize(
    ("method", "sizes", "ranks"),
    [
        ("lora", [(24, 16), (8, 32)], "at most 8"),
        ("spp", [(24, 16), (18, 9)], "one of 1, 2, 3, 6"),
        ("full", [(4, 3)], "at most 3"),
    ],
)
def test_the_ranks_that_fit_all_sizes(method: str, sizes: list[tuple[int, int]], ranks: str) -> None:
    assert fit.ranks(METHODS[method].adapter, sizes) == ranks


@pytest.mark.parametrize(("method", "rank"), [("lors", 17), ("lora", 100), ("sqft", 17), ("spp", 5), ("spp", 48)])
def test_impossible_ranks(method: str, rank: int) -> None:
    assert "a rank" in (fit.misfit(METHODS[method].adapter, rank, (24, 16)) or "")
    assert fit.misfit(METHODS[method].adapter, 4, (24, 16)) is None


def test_tensors_that_do_not_fit_are_named_with_what_was_wanted() -> None:
    tensors = {
        name: {"lora_A": torch.zeros(2, columns), "lora_B": torch.zeros(rows, 2)}
        for name, (rows, columns) in {"good": (4, 6), "wide": (4, 7), "unknown": (4, 6), "tiny": (4, 6)}.items()
    }
    sizes = {"good": (4, 6), "wide": (4, 6), "tiny": (1, 6)}
    wide, unknown, tiny = fit.misfits(METHODS["lora"].adapter, lambda _: 2, tensors, sizes)
    assert wide.startswith("wide (4, 6) needs {'lora_A': (2, 6), 'lora_B': (4, 2)}, got {'lora_A': (2, 7)")
    assert unknown == "there is no linear unknown"
    assert tiny.startswith("tiny (1, 6) needs a rank of at most 1")
