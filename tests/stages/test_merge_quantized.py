"""What a merge into a quantised model can do otherwise: cut elastic ranks, or leave numbers for another quantising."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import Result

from lors_cli.artifacts import quantized_files
from lors_cli.artifacts.quantized_files import open_quantized
from lors_cli.artifacts.tensors import TensorFiles
from lors_cli.quantization.grid import codes_of
from lors_cli.training import elastic
from tests.training.outcome import adapter

Lors = Callable[..., Result]
WriteConfig = Callable[..., Path]

AWARE = {"train__quantization_aware": True}
RANKS = {"train__elastic_ranks": [4, 3, 1]}


@pytest.mark.parametrize("changes", [AWARE, {"train__method": "sqft", **AWARE}, {}], ids=["lors", "sqft", "rounded"])
def test_an_adapter_of_elastic_ranks_is_cut_at_the_merge(
    lors: Lors, on_codes: WriteConfig, tmp_path: Path, coded: Path, changes: dict[str, Any]
) -> None:
    config = on_codes(**RANKS, **changes)
    lors("train", config)
    merged = {}
    for ranks in ("4", "3", "[{match: '*', rank: 3}, {match: q_proj, rank: 1}]"):
        lors("merge", config, "--force", f"merge.ranks={ranks}")
        merged[ranks] = open_quantized(tmp_path / "run/merged")
        trained, first = adapter(tmp_path), open_quantized(coded)
        for linear in first.linears:
            rank = 1 if "q_proj" in linear and len(ranks) > 1 else int(ranks[0] if len(ranks) == 1 else 3)
            weight = first.quantized(linear)
            a, b = (trained[f"base_model.model.{linear}.lora_{x}.weight"].double() for x in "AB")
            exact = weight.weight(torch.float64)
            update = 16 / 4 * b[:, :rank] @ a[:rank]
            wanted = codes_of(exact + update * (exact != 0), weight.scales, weight.grid)
            assert torch.equal(merged[ranks].quantized(linear).codes, wanted)


def test_elastic_ranks_draw_each_rank(
    lors: Lors, on_codes: WriteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    draw = elastic.draw

    def watched(adapters: Any, ranks: Any, seed: int, step: int, *, sandwich: bool) -> None:
        kept = list(adapters)
        draw(kept, ranks, seed, step, sandwich=sandwich)
        seen.extend((step, adapter.active_rank) for adapter in kept)

    monkeypatch.setattr(elastic, "draw", watched)
    lors("train", on_codes(train__max_steps=2, **RANKS))
    assert {step for step, _ in seen} == {0, 1}
    assert {rank for _, rank in seen} == {4, 3, 1}
    seen.clear()
    lors("train", on_codes(train__max_steps=4, train__elastic_sampling="sandwich", **RANKS), "--force")
    of_steps = [{rank for step, rank in seen if step == number} for number in range(4)]
    assert of_steps == [{4}, {1}, {4, 3, 1}, {4}]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"merge__ranks": 2, **RANKS}, ["merge.ranks", "a rank that was trained: 4, 3, 1"]),
        ({"merge__ranks": 3}, ["merge.ranks", "train.elastic_ranks"]),
        ({"train__elastic_sampling": "sandwich"}, ["train.elastic_sampling", "no elastic_ranks"]),
        ({"merge__ranks": [{"match": "nothing", "rank": 3}], **RANKS}, ["merge.ranks[0].match", "'nothing'"]),
        (
            {"merge__ranks": [{"match": "up_proj", "rank": 3}], "train__target_modules": ["q_proj"], **RANKS},
            ["merge.ranks[0].match", "'up_proj'"],
        ),
        ({"train__elastic_ranks": [8, 4]}, ["train.elastic_ranks", "write rank: 8"]),
        ({"train__elastic_ranks": [4, 4]}, ["train.elastic_ranks", "each rank once"]),
        (
            {"train__method": "full", "train__rank": ..., "train__base": "dense", **RANKS},
            ["train.elastic_ranks", "full"],
        ),
    ],
)
def test_ranks_that_were_not_trained_are_refused_before_the_work(
    lors: Lors, on_codes: WriteConfig, tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    said = lors("run", on_codes(eval=..., prune=..., **changes), "--dry-run", status=2).stderr
    for word in words:
        assert word in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("shard", ["5GB", "30KB"])
def test_without_requantizing_the_merged_model_has_plain_numbers_that_can_be_quantised_again(
    lors: Lors, on_codes: WriteConfig, tmp_path: Path, make_model: Callable[..., Path], shard: str
) -> None:
    dense = make_model(tmp_path / "dense", initializer_range=0.1, shard=shard)
    again = {"method": "rtn", "bits": 4, "group_size": 16}
    config = on_codes(model=str(dense), train__input=..., quantize=again, merge__requantize="none", eval=...)
    for stage in ("prune", "quantize", "train", "merge"):
        lors(stage, config)
    run = tmp_path / "run"
    assert quantized_files.grid_of(run / "merged") is None
    before, after = open_quantized(run / "quantized"), TensorFiles(run / "merged")
    trained = adapter(tmp_path)
    assert {name for name in after.layout if name.endswith("proj.weight")} == {
        f"{name}.weight" for name in before.linears
    }
    for linear in before.linears:
        weight = before.quantized(linear).weight(torch.float32)
        a, b = (trained[f"base_model.model.{linear}.lora_{x}.weight"] for x in "AB")
        torch.testing.assert_close(after.tensor(f"{linear}.weight"), weight + 4 * (b @ a) * (weight != 0))
    loaded = AutoModelForCausalLM.from_pretrained(run / "merged")
    assert loaded.lm_head.weight.isfinite().all()
    lors("quantize", config, "--force", f"quantize.input={run / 'merged'}", f"output_dir={tmp_path / 'other'}")
    for linear in before.linears:
        new = open_quantized(tmp_path / "other/quantized").quantized(linear)
        assert not (new.mask() & ~before.quantized(linear).mask()).any()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"merge__requantize": "none", **AWARE}, ["merge.requantize", "quantization_aware"]),
        ({"merge__requantize": "rounding", "train__input": ..., "train__base": "dense"}, ["whose weights are floats"]),
    ],
)
def test_requantizing_what_is_on_a_grid_or_has_none_is_refused(
    lors: Lors, on_codes: WriteConfig, tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    said = lors("run", on_codes(eval=..., **changes), "--dry-run", status=2).stderr
    for word in words:
        assert word in said
    assert not (tmp_path / "run").exists()


def test_only_an_adapter_that_was_not_on_a_grid_is_recovered(lors: Lors, on_codes: WriteConfig, tmp_path: Path) -> None:
    config = on_codes(recover={}, eval=...)
    lors("train", config)
    lors("recover", config)
    config = on_codes(recover={}, eval=..., **AWARE)
    assert "quantization_aware: false" in lors("run", config, "--dry-run", "--force", status=2).stderr
    lors("train", config, "--force")
    assert "quantization_aware: false" in lors("recover", config, "--force", status=2).stderr


def test_an_adapter_that_only_says_that_it_was_on_a_grid_is_refused(
    lors: Lors, on_codes: WriteConfig, tmp_path: Path, coded: Path
) -> None:
    lors("train", on_codes(train__method="lora"))
    plain = tmp_path / "adapter"
    plain.mkdir()
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (plain / name).write_bytes((tmp_path / "run/adapter" / name).read_bytes())
    content = json.loads((plain / "adapter_config.json").read_text())
    config = on_codes(train=..., merge__adapter=str(plain), merge__dense=True, merge__input=str(coded))
    for value in (True, "yes"):
        (plain / "adapter_config.json").write_text(json.dumps({**content, "quantization_aware": value}))
        said = lors("merge", config, status=2).stderr
        assert "merge.adapter: quantization_aware" in said


@pytest.mark.parametrize(("rate", "moves"), [(1e-9, False), (0.5, True)])
def test_a_training_too_short_to_move_a_code_is_said(
    lors: Lors, on_codes: WriteConfig, tmp_path: Path, coded: Path, rate: float, *, moves: bool
) -> None:
    config = on_codes(train__learning_rate=rate, **AWARE)
    lors("train", config)
    said = lors("merge", config).stderr
    before, after = open_quantized(coded), open_quantized(tmp_path / "run/merged")
    same = all(torch.equal(before.quantized(n).codes, after.quantized(n).codes) for n in before.linears)
    assert same is not moves
    assert ("the merged model is the quantised one" in said) is not moves
