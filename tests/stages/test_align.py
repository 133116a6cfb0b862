"""Continual pre-training of a pruned model, before the adapters."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from typer.testing import Result

from lors_cli.api import load_adapter
from lors_cli.artifacts import tensors
from lors_cli.models import load, structure
from tests.models.test_structure import RANDOM
from tests.training import processes

Lors = Callable[..., Result]
WriteConfig = Callable[..., Path]
ALIGN = {
    "dataset": {"path": "python-topics", "limit": 3},
    "sequence_length": 32,
    "batch_size": 4,
    "learning_rate": 3e-3,
    "max_steps": 12,
}
LORA = {"train__method": "lora", "recover": {}}


def manifest_of(directory: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((directory / "lors.json").read_text())
    return manifest


def test_a_smaller_model_is_aligned_trained_on_and_its_adapter_recovered(
    lors: Lors, write_config: WriteConfig, dense: Path, tmp_path: Path
) -> None:
    config = write_config(prune=RANDOM, align=ALIGN, **LORA)
    plan = lors("run", config, "--dry-run").stdout
    assert "align: full, " in plan
    lors("run", config, "eval.models=[dense,pruned,tuned,merged]")
    run = tmp_path / "run"
    aligned = manifest_of(run / "aligned")
    assert aligned["stage"] == "align"
    assert structure.read(run / "aligned") == structure.read(run / "pruned")
    before, after = (
        load.load_model(run / name, "float32", torch.device("cpu")).state_dict() for name in ("pruned", "aligned")
    )
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "_proj." in name}
    # the adapter belongs to the aligned model, and goes back to the original
    assert manifest_of(run / "adapter")["request"]["inputs"]["pruned"] == aligned["digest"]
    recovered = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(dense), run / "recovered")
    merged = AutoModelForCausalLM.from_pretrained(run / "merged")
    ids = torch.arange(20)[None]
    assert torch.allclose(recovered(ids).logits, merged(ids).logits, atol=1e-5)
    measured = json.loads((run / "eval/results.json").read_text())["models"]
    assert set(measured) == {"dense", "pruned", "tuned", "merged"}
    small = load.load_model(run / "aligned", "float32", torch.device("cpu"))
    load_adapter(small, run / "adapter")
    assert measured["tuned"]["path"] == str(run / "adapter")
    assert measured["tuned"]["digest"] == manifest_of(run / "adapter")["digest"]


@pytest.mark.parametrize("method", ["full", "lors"])
def test_the_zeros_of_a_sparse_model_stay(lors: Lors, write_config: WriteConfig, tmp_path: Path, method: str) -> None:
    low_rank = {"method": method, "rank": 4} if method != "full" else {}
    lors("run", write_config(align={**ALIGN, **low_rank}, eval__models=["dense", "pruned", "aligned", "merged"]))
    run = tmp_path / "run"
    for name, weight in tensors.read(run / "aligned"):
        if "_proj" in name:
            pruned = tensors.TensorFiles(run / "pruned").tensor(name)
            assert torch.equal(pruned != 0, weight != 0)
            assert not torch.equal(pruned, weight)
    assert manifest_of(run / "aligned")["pattern"] == "2:4"
    assert manifest_of(run / "merged")["request"]["inputs"]["pruned"] == manifest_of(run / "aligned")["digest"]
    results = json.loads((run / "eval/results.json").read_text())["models"]
    values = [results[name]["perplexity"]["value"] for name in ("pruned", "aligned")]
    assert values[0] != values[1]
    if method == "full":  # a low rank learns too little in so few steps
        assert values[1] < values[0]


def test_lora_may_not_fill_zeros_and_errors_name_the_section(lors: Lors, write_config: WriteConfig) -> None:
    said = lors("align", write_config(align={**ALIGN, "method": "lora"}), "--dry-run", status=2).stderr
    assert "run `lors prune` first" in said
    config = write_config(align={**ALIGN, "method": "lora"})
    assert "a method that keeps zeros" in lors("run", config, "--dry-run", status=2).stderr
    config = write_config(align={**ALIGN, "method": "sqft", "rank": 10_000})
    assert "align.rank" in lors("run", config, "--dry-run", status=2).stderr


def test_an_interrupted_alignment_goes_on(
    lors: Lors, write_config: WriteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = write_config(align=ALIGN, output_dir=str(tmp_path / "whole"))
    lors("prune", whole)
    lors("align", whole)
    config = write_config(align=ALIGN)
    lors("prune", config)

    def fail(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:  # between the training and the merge
        patched.setattr("lors_cli.stages.merge.write", fail)
        lors("align", config, status=130)
    assert "resuming from checkpoint-12" in lors("align", config).stderr
    for first, second in zip(*(tensors.read(tmp_path / name / "aligned") for name in ("whole", "run")), strict=True):
        assert torch.equal(first[1], second[1])


def test_a_base_in_four_bits(
    lors: Lors,
    write_config: WriteConfig,
    make_model: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make_model(tmp_path / "m", hidden_size=64, intermediate_size=128)
    settings = {
        "model": str(model),
        "prune": RANDOM,
        "train__target_modules": ["q_proj", "down_proj", "lm_head"],
        **LORA,
    }
    config = write_config(train__base="nf4", **settings)
    with monkeypatch.context() as patched:
        patched.setattr("lors_cli.training.memory_estimate.is_installed", lambda: False)
        assert "pip install bitsandbytes" in lors("run", config, "--dry-run", status=2).stderr
    pytest.importorskip("bitsandbytes")
    lors("run", config)
    lors("run", config, "train.base=dense", f"output_dir={tmp_path / 'dense'}")
    losses = [manifest_of(tmp_path / run / "adapter")["last_loss"] for run in ("dense", "run")]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert "nf4 is for lora" in lors("train", config, "train.method=lors", "--force", status=2).stderr
    # four bits change the result, so it is another run
    assert "train: base" in lors("train", config, "train.base=dense", status=2).stderr


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_align_as_one_does(lors: Lors, write_config: WriteConfig, tmp_path: Path, parallel: str) -> None:
    config = write_config(align={**ALIGN, "parallel": parallel, "batch_size": 4, "micro_batch_size": 2})
    lors("prune", config)
    (tmp_path / "other").mkdir()
    shutil.copytree(tmp_path / "run/pruned", tmp_path / "other/pruned")
    lors("align", config)
    children = processes.start(2, config, [f"output_dir={tmp_path / 'other'}"], stage="align")
    assert processes.wait(children) == [0, 0]
    for (name, one), (_, other) in zip(
        *(tensors.read(tmp_path / run / "aligned") for run in ("run", "other")), strict=True
    ):
        assert torch.equal(one != 0, other != 0), name
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_what_cannot_go_together_is_refused(
    lors: Lors, write_config: WriteConfig, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    config = write_config(prune=RANDOM, align=ALIGN, **LORA)

    def said(*arguments: str, command: str = "run") -> str:
        return lors(command, config, *arguments, "--dry-run", status=2).stderr

    assert "no train.input beside align" in said(f"train.input={tmp_path}")
    assert "share a model that already exists" in said("train.learning_rate=1e-3,1e-2", command="sweep")
    assert "left out it is full" in said("align.rank=4")
    (tmp_path / "model").mkdir()
    assert "align.target_modules" in said(
        "prune=null", f"align.input={make_model(tmp_path / 'model')}", "align.target_modules=[x]"
    )


def test_an_error_while_aligning_names_the_section(lors: Lors, write_config: WriteConfig, dense: Path) -> None:
    said = lors("align", write_config(align={**ALIGN, "input": str(dense)}), status=2).stderr
    assert "align.target_modules" in said
    assert "train." not in said


def test_an_aligned_model_keeps_its_origin_when_it_is_aligned_again(
    lors: Lors, write_config: WriteConfig, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    config = write_config(align=ALIGN, **LORA)
    for stage in ("prune", "align"):
        lors(stage, config)
    again = write_config(align={**ALIGN, "input": str(tmp_path / "run/aligned")}, prune=..., **LORA)
    other = make_model(tmp_path / "other", seed=3)
    said = lors("run", again, f"model={other}", f"output_dir={tmp_path / 'again'}", status=2).stderr
    assert "another one (its digest differs)" in said


def test_a_smaller_model_takes_adapters_that_keep_zeros(lors: Lors, write_config: WriteConfig, tmp_path: Path) -> None:
    lors("run", write_config(prune=RANDOM, align=ALIGN, eval__models=["tuned", "merged"]))
    models = json.loads((tmp_path / "run/eval/results.json").read_text())["models"]
    values = [models[name]["perplexity"]["value"] for name in ("tuned", "merged")]
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_the_log_of_a_resumed_training_has_tokens_throughout(
    lors: Lors, write_config: WriteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(align=ALIGN)
    lors("prune", config)
    with monkeypatch.context() as patched:
        patched.setattr("lors_cli.stages.merge.write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        lors("align", config, status=130)
    lors("align", config)
    lines = (tmp_path / "run/aligned/training_log.jsonl").read_text().splitlines()
    assert len([line for line in lines if '"loss"' in line]) == ALIGN["max_steps"]
    assert all('"tokens"' in line for line in lines)
