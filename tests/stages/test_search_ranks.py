"""`merge.rank_search`: against merges with all ranks, one after another, each measured by itself."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import Result

import lors_cli
from lors_cli.artifacts.digest import of_directory
from lors_cli.data import builtin
from lors_cli.models.load import load_tokenizer

Lors = Callable[..., Result]
WriteConfig = Callable[..., Path]

LINEARS = ["model.layers.0.self_attn.v_proj", "model.layers.1.mlp.down_proj"]
RANKS = [4, 1]
SEARCH = {"dataset": "python-topics", "sequence_length": 32, "samples": 4, "neighbours": 2, "changes": 2}
ELASTIC = {"train__elastic_ranks": RANKS, "train__target_modules": LINEARS, "train__learning_rate": 0.1, "eval": ...}
PLAIN = {"train__base": "dense", "train__input": ...}


def merged(tmp_path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((tmp_path / "run/merged/lors.json").read_text())
    return content


@torch.no_grad()
def loss_of(directory: Path) -> float:
    """The mean loss of a model directory on the first four windows."""
    tokenizer, model = load_tokenizer(directory), lors_cli.load(directory)
    ids = tokenizer("\n\n".join(builtin.texts("train")), add_special_tokens=False)["input_ids"][: 4 * 32]
    windows = torch.tensor(ids).view(4, 32)
    return float(torch.stack([model(input_ids=one[None], labels=one[None]).loss.double() for one in windows]).mean())


@pytest.mark.parametrize(
    "changes",
    [{"train__method": "lora", "merge__apply_mask": True, **PLAIN}, {}, {"train__quantization_aware": True}],
    ids=["dense", "rounded", "aware"],
)
def test_the_search_measures_what_is_merged_and_finds_the_best_of_all(
    lors: Lors, on_codes: WriteConfig, tmp_path: Path, pruned: Path, changes: dict[str, Any]
) -> None:
    if changes.get("train__input") is ...:
        changes = {**changes, "train__input": str(pruned)}
    config = on_codes(**ELASTIC, **changes)
    lors("train", config)
    losses, digests = {}, {}
    for ranks in itertools.product(RANKS, repeat=2):
        entries = [{"match": name, "rank": rank} for name, rank in zip(LINEARS, ranks, strict=True)]
        lors("merge", config, "--force", f"merge.ranks={json.dumps(entries)}")
        losses[ranks] = loss_of(tmp_path / "run/merged")
        digests[ranks] = of_directory(tmp_path / "run/merged")
    assert len(set(losses.values())) == 4
    config = on_codes(**ELASTIC, **changes, merge__rank_search={**SEARCH, "evaluations": 4})
    plan = lors("merge", config, "--force", "--dry-run").stdout
    assert "among 4, 1: 4 losses at most, each of 4 samples with 124 tokens" in plan
    said = lors("merge", config, "--force").stderr
    found = merged(tmp_path)["rank_search"]
    assert list(found["ranks"]) == LINEARS
    best = tuple(found["ranks"].values())
    assert found["evaluations"] == 4
    assert found["first_loss"] == pytest.approx(losses[4, 4], abs=1e-5)
    assert found["loss"] == pytest.approx(losses[best], abs=1e-5) == pytest.approx(min(losses.values()), abs=1e-5)
    assert of_directory(tmp_path / "run/merged") == digests[best]
    assert f"{found['first_loss']:.4f} nats a token with 4 everywhere, {found['loss']:.4f} with the best" in said


def test_a_small_budget_is_kept_and_the_same_seed_finds_the_same(
    lors: Lors, on_codes: WriteConfig, tmp_path: Path
) -> None:
    search = {**SEARCH, "evaluations": 4}
    config = on_codes(train__elastic_ranks=RANKS, train__also=["norms"], eval=..., merge__rank_search=search)
    lors("train", config)
    found = []
    for seed in (0, 0, 1):
        lors("merge", config, "--force", f"seed={seed}")
        found.append((merged(tmp_path)["rank_search"], of_directory(tmp_path / "run/merged")))
    assert found[0] == found[1]
    assert found[0][0]["ranks"] != found[2][0]["ranks"] or found[0][0]["loss"] == found[0][0]["first_loss"]
    for one, _ in found:
        assert (one["evaluations"], len(one["ranks"])) == (4, 14)
        assert one["loss"] <= one["first_loss"] == found[0][0]["first_loss"]
    assert loss_of(tmp_path / "run/merged") == pytest.approx(found[2][0]["loss"], abs=1e-5)
    assert "is up to date" in lors("merge", config, "seed=1").stderr


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train__elastic_ranks": ...}, ["merge.rank_search", "train.elastic_ranks"]),
        ({"merge__ranks": 1}, ["ranks or rank_search, not both"]),
        ({"merge__rank_search__dataset": ...}, ["merge.rank_search.dataset"]),
        ({"merge__rank_search__dataset": "/no/such.jsonl"}, ["merge.rank_search.dataset", "/no/such.jsonl"]),
        ({"merge__rank_search__sequence_length": 10**6}, ["merge.rank_search.dataset", "text for 1 windows"]),
        ({"merge__rank_search__evaluations": 1}, ["merge.rank_search.evaluations"]),
    ],
)
def test_a_search_that_cannot_be_is_refused_before_the_work(
    lors: Lors, on_codes: WriteConfig, tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    config = on_codes(**{**ELASTIC, "merge__rank_search": dict(SEARCH), **changes})
    said = lors("run", config, "--dry-run", status=2).stderr
    for word in words:
        assert word in said
    assert not (tmp_path / "run").exists()


def test_windows_longer_than_the_model_was_made_for_are_named(lors: Lors, on_codes: WriteConfig) -> None:
    config = on_codes(**ELASTIC, merge__rank_search={**SEARCH, "sequence_length": 300})
    said = lors("run", config, "--dry-run").stderr
    assert "merge.rank_search.sequence_length is 300, longer than the model's 256 positions" in said
