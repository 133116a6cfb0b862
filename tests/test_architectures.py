"""A short part of scripts/architectures.py, which tries every causal language model of transformers; and its page."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from lors_cli.models import load

SCRIPT = Path(__file__).parents[1] / "scripts" / "architectures.py"


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("architectures", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "works", "packing"),
    [
        ("llama", "yes", "exact"),
        ("qwen3", "yes", "exact"),
        ("gemma3_text", "yes", "exact"),
        ("gpt_neo", "yes", "exact"),
        ("phi", "yes", "exact"),
        ("falcon", "yes", "a change in one document moves the logits"),
        ("opt", "yes", "a change in one document moves the logits"),
        ("lfm2", "yes", "a change in one document moves the logits"),
        ("mixtral", "refused: MixtralForCausalLM, a mixture of 4 experts", ""),
        ("gemma3n_text", "refused: Gemma3nForCausalLM: the states that enter model.layers.0 are of shape", ""),
        ("gpt2", "refused: GPT2LMHeadModel, whose blocks keep their weights in Conv1D", ""),
    ],
)
def test_an_architecture(script: Any, name: str, works: str, packing: str, tmp_path: Path) -> None:
    found = script.attempt(name, tmp_path, ["lors"])
    assert found["works"].startswith(works)
    assert found.get("packing", "").startswith(packing)


@pytest.mark.parametrize("name", ["codegen", "gptj", "llama", "gemma3_text", "bloom", "opt"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_what_no_file_holds_is_what_transformers_makes_of_it(
    script: Any, name: str, dtype: str, tmp_path: Path
) -> None:
    script.build(name, tmp_path)
    wanted = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=load.DTYPES[dtype])
    made = dict(load.skeleton(tmp_path, dtype).named_non_persistent_buffers())
    for where, buffer in wanted.named_non_persistent_buffers():
        assert made[where].dtype == buffer.dtype
        assert torch.equal(made.pop(where), buffer)
    assert not made


def test_the_page_names_every_architecture(script: Any) -> None:
    text = script.PAGE.read_text()
    version = re.search(r"transformers ([\d.]+),", text)
    assert version is not None
    named = set(re.findall(r"^\| `([^`]+)` \|", text, flags=re.MULTILINE))
    assert len(named) > 100
    if version[1] == transformers.__version__:
        assert named == set(script.names())


def test_the_page_lists_no_wrong_result(script: Any) -> None:
    assert "| fails: " not in script.PAGE.read_text()
