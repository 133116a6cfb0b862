"""Models whose blocks have lost groups and channels: against the original with those parts set to zero."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig
from typer.testing import Result

from lors_cli.models import load, structure
from lors_cli.models.linears import block_linears, find_blocks
from lors_cli.sequential.gradients import visit_backwards

Lors = Callable[..., Result]
WriteConfig = Callable[..., Path]
RANDOM = {"method": "structured_random", "ratio": 0.5, "keep_first": 0, "keep_last": 1}
TEXT = {"dataset": "python-topics", "samples": 4, "sequence_length": 32}
TAYLOR = {**RANDOM, "method": "structured_taylor", "calibration": TEXT}


@torch.no_grad()
def zeroed(original: Path, smaller: structure.Structure) -> Any:
    """The original, with the weights of what was removed set to zero: its outputs are those of the smaller one."""
    model: Any = AutoModelForCausalLM.from_pretrained(original)
    for name, parameter in model.named_parameters():
        module = name.rpartition(".")[0]
        for along, kept in ((0, smaller.rows(module)), (1, smaller.columns(module))):
            if kept is not None and along < parameter.dim():
                gone = torch.ones(parameter.shape[along], dtype=torch.bool)
                gone[kept] = False
                parameter.index_fill_(along, gone.nonzero().squeeze(1), 0.0)
    return model


@pytest.mark.parametrize("prune", [RANDOM, TAYLOR, {**TAYLOR, "importance": "vector", "aggregation": "last"}])
def test_the_smaller_model_computes_what_the_original_without_the_parts_does(
    lors: Lors, write_config: WriteConfig, dense: Path, tmp_path: Path, prune: dict[str, Any]
) -> None:
    lors("prune", write_config(prune=prune))
    pruned = tmp_path / "run/pruned"
    kept = structure.read(pruned)
    assert kept
    assert [(len(block.groups), len(block.channels)) for block in kept.blocks] == [(1, 32), (2, 64)]
    smaller = load.load_model(pruned, "float32", torch.device("cpu"))
    facts = json.loads((pruned / "lors.json").read_text())
    assert sum(p.numel() for p in smaller.parameters()) == facts["parameters"]["after"]
    assert facts["reduction"] == facts["parameters"]["before"] / facts["parameters"]["after"] > 1
    ids = torch.arange(40)[None]
    assert torch.allclose(smaller(ids).logits, zeroed(dense, kept)(ids).logits, atol=1e-6)
    with pytest.raises(RuntimeError, match="size"):
        AutoModelForCausalLM.from_pretrained(pruned)
    shown = lors("inspect", pruned).stdout
    assert "32x32" in shown


def test_the_gradients_of_each_block_are_those_of_the_whole_model(dense: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float64)
    windows = torch.randint(384, (3, 20))
    sum(model(input_ids=w[None], labels=w[None]).loss for w in windows).backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.requires_grad_(False)
    seen: list[int] = []

    def visit(index: int, block: Any) -> None:
        seen.append(index)
        for name, linear in block_linears(block).items():
            gradient = linear.weight.grad
            assert gradient is not None
            assert torch.allclose(gradient, wanted[f"model.layers.{index}.{name}.weight"], rtol=1e-9, atol=0), name
        others = [b for number, b in enumerate(find_blocks(model)[1]) if number != index]
        assert all(p.grad is None for b in others for p in b.parameters())

    steps: list[int] = []
    visit_backwards(model, windows, visit, lambda: steps.append(1))
    assert seen == [1, 0]
    assert len(steps) == 6


LLAMA = {"vocab_size": 32000, "tie_word_embeddings": False, "torch_dtype": "float16"}
SHAPES = {
    "13b": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40},
    "70b": {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
}


@pytest.mark.parametrize(
    ("shape", "ratio", "said"),
    [
        # LoRAM, table 2: 13.02B -> 6.01B, 2.17x
        (
            "13b",
            0.65,
            "13.02B -> 6.01B parameters (2.17x, exactly 6,005,662,720); 34 of 40 blocks keep 14 attention",
        ),
        # whole groups, as in the paper: 2 of 8 stay, so attention keeps 0.25 of it, not 0.15
        ("70b", 0.85, "68.98B -> "),
    ],
)
def test_the_counts_of_the_papers_models_from_their_configs(
    lors: Lors, write_config: WriteConfig, tmp_path: Path, shape: str, ratio: float, said: str
) -> None:
    LlamaConfig(**LLAMA, **SHAPES[shape]).save_pretrained(tmp_path / "model")
    prune = {"method": "structured_random", "ratio": ratio}
    config = write_config(model=str(tmp_path / "model"), prune=prune)
    shown = lors("prune", config, "--dry-run").stdout
    assert said in shown
    hidden, mlp, layers, heads = (SHAPES[shape][key] for key in list(SHAPES[shape])[:4])
    groups = SHAPES[shape].get("num_key_value_heads", heads)
    kept, channels = groups - int(groups * ratio + 1e-9), mlp - int(mlp * ratio + 1e-9)

    def block(groups_left: int, channels_left: int) -> int:
        queries, keys = groups_left * heads // groups * hidden // heads, groups_left * hidden // heads
        return hidden * (2 * queries + 2 * keys) + 3 * hidden * channels_left + 2 * hidden

    after = 6 * block(groups, mlp) + (layers - 6) * block(kept, channels) + 2 * 32000 * hidden + hidden
    assert f"-> {after / 1e9:.2f}B parameters" in shown
    assert "has no *.safetensors" in lors("prune", config, status=2).stderr


@pytest.mark.parametrize(
    ("prune", "expected"),
    [
        ({**RANDOM, "ratio": 1.0}, "below 1"),
        ({**RANDOM, "keep_first": 2}, "some blocks between"),
        ({"method": "structured_random"}, "ratio: the fraction"),
        ({**RANDOM, "sparsity": "2:4"}, "no sparsity"),
        ({**TAYLOR, "calibration": None}, "calibration"),
        ({**RANDOM, "importance": "vector"}, "no importance"),
        ({"method": "wanda", "sparsity": 0.5, "ratio": 0.5, "calibration": TEXT}, "no ratio"),
    ],
)
def test_bad_requests(lors: Lors, write_config: WriteConfig, prune: dict[str, Any], expected: str) -> None:
    assert expected in lors("prune", write_config(prune=prune), status=2).stderr


def test_a_damaged_structure_is_named(lors: Lors, write_config: WriteConfig, tmp_path: Path) -> None:
    lors("prune", write_config(prune=RANDOM))
    file = tmp_path / "run/pruned/structure.json"
    content = json.loads(file.read_text())
    content["blocks"][0]["groups"] = [5]
    file.write_text(json.dumps(content))
    assert "structure.json is damaged" in lors("inspect", tmp_path / "run/pruned", status=1).stderr


def test_a_model_of_another_form_is_refused(lors: Lors, write_config: WriteConfig, tmp_path: Path, dense: Path) -> None:
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(vocab_size=384, n_embd=32, n_layer=2, n_head=4)).save_pretrained(tmp_path / "gpt2")
    AutoTokenizer.from_pretrained(dense).save_pretrained(tmp_path / "gpt2")
    said = lors("prune", write_config(model=str(tmp_path / "gpt2"), prune=RANDOM), status=2).stderr
    assert "Llama's form" in said
