"""Training that starts from an adapter, and finished trainings that are trained further."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from typer.testing import Result

from lors_cli.training.trainer import AdapterTrainer
from tests.stages.test_train_damage import stop_in
from tests.training.outcome import adapter, manifest, same, unbroken

Lors = Callable[..., Result]
WriteConfig = Callable[..., Path]


@pytest.fixture
def config(write_config: WriteConfig, pruned: Path) -> Path:
    settings = {"input": str(pruned), "schedule": "constant", "max_steps": 5, "batch_size": 2, "dropout": 0.1}
    return write_config(**{f"train__{key}": value for key, value in {**settings, "method": "spp"}.items()})


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The tokens of each micro-batch that a training has seen."""
    taken: list[list[int]] = []
    original = AdapterTrainer.training_step

    def step(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        taken.append(inputs["input_ids"].flatten().tolist())
        return original(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(AdapterTrainer, "training_step", step)
    return taken


def test_a_finished_training_goes_on_as_if_it_had_been_longer(
    lors: Lors, config: Path, pruned: Path, tmp_path: Path, seen: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bits, also of dropout, and killed halfway, as of one training of all steps."""
    whole = unbroken(lors, tmp_path, config)
    order = [*seen]
    seen.clear()
    (tmp_path / "unbroken").rename(tmp_path / "whole")
    lors("train", config, "train.max_steps=2", "train.save_optimizer=true")
    first = tmp_path / "first"
    refused = lors("train", config, "train.save_optimizer=true", status=2).stderr
    remedy = f"train.resume_from={tmp_path / 'run/adapter'} train.input={pruned} output_dir=ANOTHER"
    assert remedy in " ".join(refused.split())

    literal = [word.replace("ANOTHER", str(tmp_path / "more")) for word in remedy.split()]
    plan = lors("train", config, "train.max_steps=3", *literal, "--dry-run").stdout
    assert "made in 2 steps, with its optimiser's state, with the data after 4 samples" in " ".join(plan.split())
    with monkeypatch.context() as patch:
        stop_in(2, patch)
        lors("train", config, "train.max_steps=3", *literal, "train.save_steps=1", status=130)
    lors("train", config, "train.max_steps=3", *literal, "train.save_steps=1")
    assert seen == order  # the kill came in the second of the three, before its samples were used
    assert same(load_file(tmp_path / "more/adapter/adapter_model.safetensors"), whole)
    made = json.loads((tmp_path / "more/adapter/lors.json").read_text())
    assert made["further"] == {"steps": 2, "tokens": manifest(tmp_path)["tokens"], "samples": 4, "optimizer": True}
    assert (made["steps"], made["init"]) == (3, "resume_from")

    # again, without the optimiser, which nobody asked to keep, and from the first sample
    third = ["train.max_steps=1", f"train.resume_from={tmp_path / 'more/adapter'}", f"output_dir={tmp_path / 'third'}"]
    seen.clear()
    lors("train", config, *third)
    facts = json.loads((tmp_path / "third/adapter/lors.json").read_text())["further"]
    assert (facts["steps"], facts["samples"], facts["optimizer"]) == (5, 10, False)
    assert seen[0] not in order
    seen.clear()
    lors("train", config, *third, "train.resume_data=restart", f"output_dir={tmp_path / 'fourth'}")
    assert seen[0] == order[0]
    lors(
        "merge",
        config,
        f"merge.input={pruned}",
        f"merge.adapter={tmp_path / 'third/adapter'}",
        "output_dir=" + str(first),
    )


def test_what_cannot_be_trained_further(
    lors: Lors, config: Path, pruned: Path, make_model: Any, tmp_path: Path
) -> None:
    lors("train", config, "train.max_steps=1")
    own, further = tmp_path / "run/adapter", [f"output_dir={tmp_path / 'more'}"]
    further.append(f"train.resume_from={own}")
    other = make_model(tmp_path / "other", initializer_range=0.1)
    for options, said in (
        (["train.rank=2"], "train.rank 2"),
        (["train.alpha=2"], "train.alpha 2"),
        (["train.method=lors", "train.dropout=null"], "an adapter of lors"),
        (["train.target_modules=[q_proj]"], "which also has"),
        (["train.target_modules=['*', lm_head]"], "which has nothing for lm_head"),
        ([f"train.input={other}", "train.target_modules=['*']"], "another model"),
        (["seed=1"], "seed"),
        (["train.sequence_length=16"], "train.sequence_length"),
        (["train.dataset.limit=2"], "train.dataset.limit"),
        (["train.max_steps=1000"], "samples that were not seen yet"),
        (["train.max_steps=null", "train.max_tokens=1000000"], "tokens that were not seen yet"),
        (["train.init=random"], "no init"),
        (["train.adapter=" + str(own)], "adapter or resume_from, not both"),
        (["output_dir=" + str(tmp_path / "run")], "outside of output_dir"),
    ):
        assert said in " ".join(lors("train", config, *further, *options, status=2).stderr.split()), options
    (own / "lors.json").unlink()
    refused = lors("train", config, *further, status=2).stderr
    assert "train.adapter" in refused
    lors("train", config, further[0], f"train.adapter={own}", "train.max_steps=1")


@pytest.mark.parametrize("method", ["lora", "lors"])
def test_an_adapter_of_peft_is_a_start(
    lors: Lors, write_config: WriteConfig, dense: Path, pruned: Path, tmp_path: Path, method: str
) -> None:
    torch.manual_seed(0)
    targets = ["q_proj", "up_proj"]
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(dense),
        LoraConfig(r=4, lora_alpha=16, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM"),
    )
    model.save_pretrained(tmp_path / "peft")
    options = {"input": str(pruned), "method": method, "adapter": str(tmp_path / "peft"), "target_modules": targets}
    config = write_config(**{f"train__{name}": value for name, value in options.items()})
    lors("train", config, "train.max_steps=1", "train.learning_rate=1e-30")  # which changes nothing
    assert same(adapter(tmp_path), load_file(tmp_path / "peft/adapter_model.safetensors"))
    assert manifest(tmp_path)["init"] == "adapter"
    assert "further" not in manifest(tmp_path)
    assert manifest(tmp_path)["request"]["inputs"].keys() == {"pruned", "adapter"}
    refused = lors("train", config, "train.target_modules=null", f"output_dir={tmp_path / 'all'}", status=2).stderr
    assert "which has nothing for" in " ".join(refused.split())
    assert (
        "align"
        in lors("align", config, f"align.adapter={tmp_path / 'peft'}", "align.dataset=python-topics", status=2).stderr
    )
