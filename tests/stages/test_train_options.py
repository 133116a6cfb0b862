"""Options of `train` that change how it computes: formulations, starts, packed bases, kept merged weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import Result

from lors_cli.adapters import METHODS
from lors_cli.models import memory
from tests.training.outcome import adapter, losses, manifest, same

Lors = Callable[..., Result]
WriteConfig = Callable[..., Path]


@pytest.mark.parametrize(
    ("sparsity", "dtype", "checkpointing"),
    [("2:4", "float32", False), ("2:4", "bfloat16", True), ("0.5", "bfloat16", False)],
)
def test_a_packed_base_and_kept_merged_weights_change_no_bit(
    lors: Lors, write_config: WriteConfig, tmp_path: Path, sparsity: str, dtype: str, checkpointing: bool
) -> None:
    config = write_config(
        prune__sparsity=sparsity,
        train__dtype=dtype,
        train__micro_batch_size=2,
        train__gradient_checkpointing=checkpointing,
    )
    lors("prune", config)
    adapters, lines = [], []
    for base, cache in (("dense", "off"), ("dense", "auto"), ("packed", "off"), ("packed", "full")):
        lors("train", config, f"train.base={base}", f"train.merge_cache={cache}", "--force")
        adapters.append(adapter(tmp_path))
        lines.append(losses(tmp_path))
        kept = manifest(tmp_path).get("merge_cache")
        assert (kept is None) == (cache == "off")
    uses = 14 * 4 * (6 if checkpointing else 4)  # forward, backward and recomputation in both micro-batches of 4 steps
    if not checkpointing:
        uses -= 3 * 2 * 4  # nothing before the first block's q, k and v needs a gradient
    assert kept == {"linears": 14, "merges": 14 * 4, "hits": uses - 14 * 4}  # merged once a linear and step
    assert all(same(one, adapters[0]) for one in adapters)
    assert all(one == lines[0] for one in lines)


def test_how_things_are_kept_is_no_other_request(lors: Lors, write_config: WriteConfig) -> None:
    config = write_config()
    lors("run", config)
    assert "up to date" in lors("train", config, "train.base=packed", "train.merge_cache=off").stderr
    assert "train: formulation" in lors("train", config, "train.formulation=listing", status=2).stderr


def test_auto_keeps_what_fits_free_memory(
    lors: Lors, write_config: WriteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config()
    lors("prune", config)
    facts = json.loads(lors("inspect", tmp_path / "run/pruned", "--json").stdout)
    whole = 4 * facts["parameters"]
    rank = 4
    trained = sum(rank * sum(m["shape"]) for m in facts["modules"].values())
    for share in (0.0, 0.5, 1.0):
        free = (whole * share + 8 * trained) / 0.9 + 1
        monkeypatch.setattr(memory, "never_used", lambda _, free=free: int(free))
        monkeypatch.setattr(memory, "peak_above_now", lambda _: 0)
        lors("train", config, "--force")
        kept = manifest(tmp_path)["merge_cache"]
        assert {0.0: kept["linears"] == 0, 0.5: 0 < kept["linears"] < 14, 1.0: kept["linears"] == 14}[share]


WAYS = [(name, way) for name, row in METHODS.items() for way in row.formulations]


@pytest.mark.parametrize(("method", "way"), WAYS)
def test_every_formulation_trains_to_the_same(
    lors: Lors, write_config: WriteConfig, tmp_path: Path, method: str, way: str
) -> None:
    unused = {"train__rank": None, "train__alpha": None} if method == "full" else {}
    config = write_config(train__method=method, train__init="random", **unused)
    lors("prune", config)
    lors("train", config)
    first = adapter(tmp_path)
    lors("train", config, f"train.formulation={way}", "--force")
    for name, tensor in adapter(tmp_path).items():
        torch.testing.assert_close(tensor, first[name], rtol=1e-3, atol=1e-4)
    lors("merge", config, *(["merge.apply_mask=true"] if method == "lora" else []))


@pytest.mark.parametrize(
    ("init", "base"), [("gradient", "packed"), ("gradient_svd", "dense"), ("eva", "dense"), ("random", "packed")]
)
def test_every_start_is_the_pruned_model_and_repeatable(
    lors: Lors, write_config: WriteConfig, tmp_path: Path, init: str, base: str
) -> None:
    config = write_config(train__init=init, train__base=base, train__micro_batch_size=2, train__max_steps=1)
    lors("prune", config)
    result = lors("train", config, "train.learning_rate=1e-30")
    first = adapter(tmp_path)
    assert ("initialising" in result.stderr) == (init != "random")
    for name, tensor in first.items():
        if "lora_B" in name:
            assert tensor.abs().max() < 1e-20  # as far as one step of that rate went
        elif init != "random":
            torch.testing.assert_close(tensor @ tensor.T, torch.eye(4), rtol=0, atol=1e-5)
    assert manifest(tmp_path)["init"] == init
    lors("train", config, "train.learning_rate=1e-30", "--force")
    assert same(adapter(tmp_path), first)


def test_stochastic_rounding_trains_and_resumes_by_its_step(
    lors: Lors, write_config: WriteConfig, tmp_path: Path
) -> None:
    config = write_config(train__dtype="bfloat16", train__merge_rounding="stochastic", train__micro_batch_size=2)
    lors("prune", config)
    lors("train", config)
    first = adapter(tmp_path)
    lors("train", config, "--force", "train.merge_cache=off", "train.base=packed")
    assert same(adapter(tmp_path), first)
    lors("train", config, "--force", "train.merge_rounding=nearest")
    assert not same(adapter(tmp_path), first)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "spp", "rank": 5}, ["train.rank", "a rank that divides", "one of 1, 2, 4, 8, 16"]),
        ({"rank": 17}, ["train.rank", "at most 16"]),
        ({"method": "spp", "formulation": "fused"}, ["a formulation of spp: listing, columns, merged"]),
        ({"method": "spp", "formulation": "merged", "dropout": 0.1}, ["dropout: 0", "not have a path to drop"]),
        ({"dropout": 0.1}, ["dropout: 0", "not have a path to drop"]),
        ({"formulation": "listing", "base": "packed"}, ["base: dense", "LoRSListing"]),
        ({"method": "sqft", "merge_cache": "full"}, ["merge_cache: off"]),
        ({"method": "lora", "merge_rounding": "stochastic"}, ["merge_rounding: nearest"]),
        ({"merge_rounding": "stochastic"}, ["train.merge_rounding", "stochastic with float32"]),
        ({"method": "spp", "init": "eva"}, ["init: random"]),
        ({"adapter_checkpointing": "reentrant"}, ["adapter_checkpointing: false"]),
    ],
)
def test_what_does_not_go_together_is_refused(
    lors: Lors, write_config: WriteConfig, changes: dict[str, Any], words: list[str]
) -> None:
    config = write_config(**{f"train__{key}": value for key, value in changes.items()})
    result = lors("run", config, "--dry-run", status=2)
    for word in words:
        assert word in result.stderr


def test_a_cache_that_does_not_fit_is_refused_before_the_work(
    lors: Lors, write_config: WriteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lors("prune", write_config())
    monkeypatch.setattr(memory, "free_host", lambda: 100_000)
    result = lors("train", write_config(train__merge_cache="full"), status=2)
    for word in ("train.merge_cache", "of free memory on cpu", "0.00 GB", "merge_cache: auto"):
        assert word in result.stderr
    assert not (tmp_path / "run/adapter").exists()
    lors("train", write_config())


def test_a_base_that_packing_would_enlarge_is_refused(
    lors: Lors, write_config: WriteConfig, tmp_path: Path, dense: Path
) -> None:
    config = write_config(train__input=str(dense), train__base="packed", train__target_modules=["q_proj"])
    result = lors("train", config, status=2)
    for word in ("train.base", "zeros, to pack in float32", "0.000", "base: dense"):
        assert word in result.stderr
    assert not (tmp_path / "run/adapter").exists()


def test_a_packed_adapter_merges_like_any_other(lors: Lors, write_config: WriteConfig, tmp_path: Path) -> None:
    config = write_config(train__base="packed", prune__sparsity="1:4")
    lors("run", config)
    merged, pruned = (load_file(tmp_path / f"run/{name}/model.safetensors") for name in ("merged", "pruned"))
    assert all(((pruned[name] == 0) <= (merged[name] == 0)).all() for name in pruned if "proj" in name)


def test_spp_without_beta_is_counted_published_and_merged(
    lors: Lors, write_config: WriteConfig, tmp_path: Path
) -> None:
    config = write_config(train__method="spp", train__spp_beta=False, train__alpha=8)
    lors("run", config)
    shapes = [tensor.shape for name, tensor in adapter(tmp_path).items() if name.endswith("spp_alpha.weight")]
    assert manifest(tmp_path)["trainable_parameters"] == sum(rank * columns for rank, columns in shapes)
    pruned, merged = (load_file(tmp_path / f"run/{name}/model.safetensors") for name in ("pruned", "merged"))
    alphas = {name: tensor for name, tensor in adapter(tmp_path).items() if name.endswith("spp_alpha.weight")}
    for name, alpha in alphas.items():
        key = f"{name.removeprefix('base_model.model.').removesuffix('spp_alpha.weight')}weight"
        factor = 1 + 2 * alpha.repeat_interleave(len(pruned[key]) // len(alpha), dim=0)
        torch.testing.assert_close(merged[key], pruned[key] * factor)
    both = lors("run", config, "train.zero_init=both", "--dry-run", status=2).stderr
    assert "zero_init: spp_alpha or none" in both
    assert "no zero_init" in lors("train", write_config(train__zero_init="both"), "--dry-run", status=2).stderr
