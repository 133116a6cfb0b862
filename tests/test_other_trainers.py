"""The page docs/other-trainers.md does what it says."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import Result

from tests.test_api import merge_and_compare

PAGE = (Path(__file__).parents[1] / "docs/other-trainers.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize(("index", "name"), [(1, "a plain loop"), (2, "Trainer"), (3, "SFTTrainer"), (5, "PEFT")])
def test_the_page(
    lors: Callable[..., Result],
    write_config: Callable[..., Path],
    pruned: Path,
    tmp_path: Path,
    index: int,
    name: str,
) -> None:
    """The blocks of the documentation: the first, one of the loops, and the last."""
    if name == "SFTTrainer":
        pytest.importorskip("trl")
    names: dict[str, Any] = {}
    for block in (BLOCKS[0], BLOCKS[1], BLOCKS[5]) if name == "PEFT" else (BLOCKS[0], BLOCKS[index], BLOCKS[4]):
        for written, here in {
            "runs/example/pruned": str(pruned),
            "runs/example": str(tmp_path),
            "lr=2e-4": "lr=1e-2",
            "learning_rate=2e-4": 'learning_rate=1e-2, use_cpu=True, report_to="none", disable_tqdm=True',
        }.items():
            block = block.replace(written, here)
        exec(block, names)  # noqa: S102 - the page is ours
    if name != "PEFT":
        trained, fresh = names["model"].state_dict(), names["fresh"].state_dict()
        assert all(torch.equal(trained[name], tensor) for name, tensor in fresh.items())
    with torch.no_grad():
        after = names["merged" if name == "PEFT" else "fresh"](**names["batch"]).loss
        assert after < AutoModelForCausalLM.from_pretrained(pruned)(**names["batch"]).loss - 0.01
    merge_and_compare(lors, write_config, pruned, tmp_path, tmp_path / "my-adapter")
    if name == "SFTTrainer":  # what the page says of its defaults
        assert names["arguments"].bf16
        assert names["model"].is_gradient_checkpointing
