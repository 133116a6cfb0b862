import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import Result

from tests.training.outcome import adapter, log, losses, manifest

Lors = Callable[..., Result]
WriteConfig = Callable[..., Path]

ALPACA = [
    {"instruction": f"Count to {i}.", "input": "" if i % 2 else "slowly", "output": " ".join(map(str, range(i)))}
    for i in range(1, 25)
]
CHAT = [
    {"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": f"{i}!"}]} for i in range(9)
]
TEXT = [{"text": "one two three four five " * 100}]


@pytest.mark.parametrize("method", ["lors", "spp", "sqft", "lora"])
@pytest.mark.parametrize("rows", [ALPACA, CHAT, TEXT], ids=["alpaca", "chat", "text"])
def test_every_method_learns_from_every_format(
    lors: Lors, write_config: WriteConfig, jsonl: Callable[..., Path], tmp_path: Path, method: str, rows: Any
) -> None:
    dataset = {"path": str(jsonl(rows)), "limit": 8}
    # every step sees every row, or as good ones, so that the losses can be compared
    settings = {
        "train__method": method,
        "train__dataset": dataset,
        "train__sequence_length": 128,
        "train__batch_size": 8,
    }
    config = write_config(**settings, train__max_steps=6, train__learning_rate=3e-2)
    lors("prune", config)
    lors("train", config)
    learnt = losses(tmp_path)
    assert len(learnt) == 6
    assert min(learnt[3:]) < learnt[0]
    assert all(tensor.isfinite().all() for tensor in adapter(tmp_path).values())
    assert (manifest(tmp_path)["steps"], manifest(tmp_path)["linears"]) == (6, 14)
    assert sorted(p.name for p in (tmp_path / "run/adapter").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "lors.json",
        "training_log.jsonl",
    ]


def test_accumulation_gives_the_batchs_gradient(lors: Lors, write_config: WriteConfig, tmp_path: Path) -> None:
    adapters = []
    for size in (4, 1):
        config = write_config(train__micro_batch_size=size, train__init="random")
        lors("prune", config)
        lors("train", config, "--force")
        adapters.append(adapter(tmp_path))
    for name, tensor in adapters[0].items():
        torch.testing.assert_close(tensor, adapters[1][name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", ["sqft", "spp", "lors"])
def test_checkpointing_changes_nothing(lors: Lors, write_config: WriteConfig, tmp_path: Path, method: str) -> None:
    options = ["train.gradient_checkpointing=true"]
    if method != "lors":
        options.append("train.adapter_checkpointing=true")
    config = write_config(train__method=method)
    lors("prune", config)
    lors("train", config)
    plain = adapter(tmp_path)
    for option in options:
        lors("train", config, option, "--force")
        for name, tensor in adapter(tmp_path).items():
            torch.testing.assert_close(tensor, plain[name], rtol=1e-4, atol=1e-6)


def test_target_modules_narrow(lors: Lors, write_config: WriteConfig, tmp_path: Path) -> None:
    config = write_config(train__target_modules=["q_proj", "*.1.mlp.up_proj"])
    lors("prune", config)
    lors("train", config)
    modules = {name.rsplit(".", 2)[0].removeprefix("base_model.model.model.layers.") for name in adapter(tmp_path)}
    assert modules == {"0.self_attn.q_proj", "1.self_attn.q_proj", "1.mlp.up_proj"}


def test_held_out_loss_tokens_and_schedule(lors: Lors, write_config: WriteConfig, tmp_path: Path) -> None:
    config = write_config(
        train__eval_dataset={"path": "python-topics", "split": "test", "limit": 1},
        train__eval_steps=2,
        train__batch_size=...,
        train__batch_tokens=128,
        train__warmup=2,
        train__schedule="linear",
        train__report_to=["tensorboard"],
    )
    lors("prune", config)
    lors("train", config)
    lines = log(tmp_path)
    assert [line["step"] for line in lines if "eval_loss" in line] == [2, 4]
    rates = [line["learning_rate"] for line in lines if "loss" in line]
    assert rates == pytest.approx([0, 5e-3, 1e-2, 5e-3])
    assert any(path.is_file() for path in (tmp_path / "run/adapter/tensorboard").iterdir())


def test_epochs_count_the_steps(
    lors: Lors, write_config: WriteConfig, jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    config = write_config(
        train__max_steps=..., train__epochs=2, train__dataset=str(jsonl(ALPACA[:10])), train__sequence_length=200
    )
    lors("prune", config)
    lors("train", config)
    assert manifest(tmp_path)["steps"] == 5  # ceil(10 * 2 / 4)


def test_float16_weights_train_in_float32(
    lors: Lors, write_config: WriteConfig, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    model = make_model(tmp_path / "half", dtype=torch.float16)
    config = write_config(model=str(model), dtype="auto")
    lors("prune", config)
    lors("train", config)
    assert manifest(tmp_path)["train_dtype"] == "float32"
    lors("merge", config)
    facts = json.loads(lors("inspect", tmp_path / "run/merged", "--json").stdout)
    assert {m["dtype"] for m in facts["modules"].values()} == {"float16"}
