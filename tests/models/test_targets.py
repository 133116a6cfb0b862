import pytest
import torch

from lors_cli.adapters.lora import LoRA
from lors_cli.errors import RequestError
from lors_cli.models import targets


def test_those_with_zeros_are_taken() -> None:
    assert targets.pruned({"a": 0.5, "b": 0.0, "c": 0.9}, "k", "m") == ["a", "c"]
    with pytest.raises(RequestError, match=r"align\.target_modules[^$]*m, none of whose linears has zeros"):
        targets.pruned({"a": 0.0}, "align.target_modules", "m")


def test_the_tightest_linear_is_named_with_the_ranks_for_all() -> None:
    sizes = {"wide": (64, 32), "tight": (8, 32), "middle": (16, 16)}
    targets.check_rank(LoRA, 8, sizes, "rank")
    with pytest.raises(RequestError, match=r"\(8, 32\) of tight[^$]*at most 8"):
        targets.check_rank(LoRA, 20, sizes, "rank")


def test_packing_must_save_something() -> None:
    targets.check_packable({"a": 0.5, "b": 0.6}, torch.float32, "k", "unpack")
    with pytest.raises(RequestError, match=r"at least 0\.\d+ are zeros, to pack in bfloat16[^$]*b with 0\.010"):
        targets.check_packable({"a": 0.5, "b": 0.01}, torch.bfloat16, "k", "unpack")
