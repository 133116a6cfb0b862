"""Configs for PEFT: what our methods do not have is refused by its name."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("peft")

from peft import LoraConfig, PeftConfig
from peft.mapping import get_peft_config

from lors_cli.peft import LorsConfig, SPPConfig, SQFTConfig

DEFAULT = LoraConfig().to_dict()
OWN = {"peft_type", "r", "lora_alpha"}


def test_what_means_nothing_is_taken_and_the_rest_is_refused_by_name() -> None:
    values: dict[str, Any] = {name: value for name, value in DEFAULT.items() if name not in OWN}
    LorsConfig(**values, later=False)  # as PEFT's own config has them if nothing is asked for
    for name in values.keys() - set(LorsConfig().to_dict()):
        with pytest.raises(ValueError, match=f"{name}='asked for': lors does not have this option"):
            LorsConfig(**{name: "asked for"})


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (LorsConfig, {"lora_dropout": 0.1}),
        (LorsConfig, {"adapter_checkpointing": True}),
        (LorsConfig, {"quantization_aware": True}),
        (LorsConfig, {"init_lora_weights": False}),
        (LorsConfig, {"of a later PEFT": 1}),
        (LorsConfig, {"layers_to_transform": 0}),  # the first block alone
        (SPPConfig, {"formulation": "merged", "lora_dropout": 0.1}),
        (SQFTConfig, {"formulation": "fused"}),
        (LorsConfig, {"r": 0}),
        (LorsConfig, {"r": True}),
        (LorsConfig, {"lora_alpha": float("inf")}),
        (SPPConfig, {"lora_dropout": 1.0}),
        (LorsConfig, {"target_modules": []}),
        (LorsConfig, {"task_type": "SEQ_CLS"}),
    ],
)
def test_what_a_method_cannot_have(config: type[Any], options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"{[*options][-1]}[=: ]"):
        config(**options)


@pytest.mark.parametrize("config", [LorsConfig, SPPConfig, SQFTConfig])
def test_the_file_says_it_all(config: type[Any], tmp_path: Path) -> None:
    first = config(r=4, lora_alpha=2.5, target_modules=["v_proj", "q_proj"], formulation="listing")
    first.save_pretrained(tmp_path)
    again: Any = PeftConfig.from_pretrained(tmp_path)
    assert again == first
    assert type(again) is config
    assert again.to_dict()["target_modules"] == ["q_proj", "v_proj"]
    assert get_peft_config(first.to_dict()) == first
