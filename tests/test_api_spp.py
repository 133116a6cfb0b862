"""The ablations of SPP through `lors_cli.api`."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from lors_cli.api import attach, load_adapter, save_adapter
from tests.test_api import batch, step


@pytest.fixture
def model(pruned: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(pruned)


@pytest.mark.parametrize(("start", "learns"), [("spp_beta", 14), ("spp_alpha", 14), ("both", 0), ("none", 28)])
def test_spp_starts_as_asked(model: Any, start: str, learns: int) -> None:
    attach(model.double(), method="spp", rank=4, zero_init=start)
    model(**batch(1)).loss.backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(trained) == 28
    assert sum(bool(parameter.grad.any()) for parameter in trained) == learns


def test_spp_without_beta_comes_back_as_it_was_saved(model: Any, pruned: Path, tmp_path: Path) -> None:
    attach(model, method="spp", rank=4, spp_beta=False)
    assert sum(parameter.requires_grad for parameter in model.parameters()) == 14
    step(model)
    save_adapter(model, tmp_path / "a")
    fresh = load_adapter(AutoModelForCausalLM.from_pretrained(pruned), tmp_path / "a")
    ids = batch(2)["input_ids"]
    with torch.no_grad():
        assert torch.equal(fresh(ids).logits, model.eval()(ids).logits)
