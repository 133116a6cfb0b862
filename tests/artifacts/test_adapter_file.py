"""What plain PEFT makes of our adapter directories."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from transformers import AutoModelForCausalLM
from typer.testing import Result

from lors_cli.artifacts import adapter_file
from lors_cli.artifacts.adapter_file import AdapterFile
from lors_cli.errors import RequestError


@pytest.fixture
def trained(lors: Callable[..., Result], write_config: Callable[..., Path], tmp_path: Path) -> Callable[[str], Path]:
    def train(method: str) -> Path:
        config = write_config(train__method=method)
        lors("prune", config)
        lors("train", config)
        return tmp_path / "run"

    return train


def test_a_lora_adapter_loads_in_plain_peft_with_our_logits(
    trained: Callable[[str], Path], lors: Callable[..., Result], tmp_path: Path
) -> None:
    run = trained("lora")
    lors("merge", tmp_path / "config.yaml", "merge.dense=true")
    ids = torch.arange(1, 30)[None]
    base = AutoModelForCausalLM.from_pretrained(run / "pruned")
    adapted = PeftModel.from_pretrained(base, str(run / "adapter"))
    merged = AutoModelForCausalLM.from_pretrained(run / "merged")
    with torch.no_grad():
        torch.testing.assert_close(adapted(ids).logits, merged(ids).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["lors", "sqft", "spp"])
def test_plain_peft_refuses_the_masked_adapters(
    trained: Callable[[str], Path], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(method)
    monkeypatch.delitem(PEFT_TYPE_TO_CONFIG_MAPPING, method.upper(), raising=False)  # without lors_cli.peft
    base = AutoModelForCausalLM.from_pretrained(run / "pruned")
    with pytest.raises(Exception, match=method.upper()):
        PeftModel.from_pretrained(base, str(run / "adapter"))


def test_names_and_shapes_are_pefts(trained: Callable[[str], Path]) -> None:
    content = adapter_file.load(trained("lors") / "adapter", "k")
    assert (content.method, content.rank, content.alpha) == ("lors", 4, 16.0)
    assert len(content.modules) == 14
    tensors = content.modules["model.layers.1.mlp.down_proj"]
    assert {name: tuple(t.shape) for name, t in tensors.items()} == {"lora_A": (4, 64), "lora_B": (32, 4)}
    assert tensors["lora_A"].dtype == torch.float32


def test_what_cannot_be_merged_is_refused(trained: Callable[[str], Path], tmp_path: Path) -> None:
    adapter = trained("lora") / "adapter"
    path = adapter / adapter_file.CONFIG
    config = json.loads(path.read_text())
    for change in (
        {"peft_type": "LOHA"},
        {"use_dora": True},
        {"rank_pattern": {"q_proj": 2}},
        {"rank_pattern": {"(": 2}},
    ):
        path.write_text(json.dumps({**config, **change}))
        with pytest.raises(RequestError, match="expected"):
            adapter_file.load(adapter, "k")
    with pytest.raises(RequestError, match=r"no adapter_config\.json"):
        adapter_file.load(tmp_path, "k")


WRONG: list[tuple[str, Any]] = [
    *(("r", value) for value in ("4", 0, -1, True, 4.0, [4])),
    *(("lora_alpha", value) for value in ("x", True, float("inf"))),
    *(("lora_dropout", value) for value in ("x", 5, -1, True)),
    *(("target_modules", value) for value in (5, [1], "[")),
    ("peft_type", ["LORA"]),
    ("base_model_name_or_path", 5),
    ("layers_to_transform", "x"),
    ("rank_pattern", [1]),
]


@pytest.mark.parametrize(("option", "value"), WRONG)
def test_nonsense_in_the_config_of_an_adapter(tmp_path: Path, option: str, value: Any) -> None:
    modules = {"q_proj": {"lora_A": torch.ones(4, 8), "lora_B": torch.ones(8, 4)}}
    adapter_file.save(tmp_path, AdapterFile("lora", 4, 8, modules), base="x", dropout=0.0)
    adapter_file.load(tmp_path, "merge.adapter")
    file = tmp_path / adapter_file.CONFIG
    file.write_text(json.dumps({**json.loads(file.read_text()), option: value}))
    with pytest.raises(RequestError) as caught:
        adapter_file.load(tmp_path, "merge.adapter")
    assert caught.value.problems[0].file == str(file)


@pytest.mark.parametrize("text", ["[]", "", "null", "[" * 100_000])
def test_a_config_of_an_adapter_that_is_none(tmp_path: Path, text: str) -> None:
    modules = {"q_proj": {"lora_A": torch.ones(4, 8), "lora_B": torch.ones(8, 4)}}
    adapter_file.save(tmp_path, AdapterFile("lora", 4, 8, modules), base="x", dropout=0.0)
    (tmp_path / adapter_file.CONFIG).write_text(text)
    with pytest.raises(RequestError, match="JSON object"):
        adapter_file.load(tmp_path, "merge.adapter")
