"""`merge.requantize: gptq` against a Hessian and a solve that are made here, for linears that see the embeddings."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import Result

import lors_cli
from lors_cli.artifacts.quantized_files import open_quantized
from lors_cli.data import builtin
from lors_cli.models.load import load_tokenizer
from lors_cli.quantization import gptq

Lors = Callable[..., Result]
WriteConfig = Callable[..., Path]

CALIBRATION = {"dataset": "python-topics", "samples": 8, "sequence_length": 32}
GPTQ = {"merge__requantize": "gptq", "merge__calibration": CALIBRATION, "eval": ...}
FIRST = [f"model.layers.0.self_attn.{place}_proj" for place in "qkv"]  # what they see no quantising has changed


@torch.no_grad()
def first_inputs(directory: Path) -> Tensor:
    """What enters the attention of the first block on the calibration windows, (tokens, hidden), in float64."""
    model, tokenizer = lors_cli.load(directory), load_tokenizer(directory)
    ids = tokenizer("\n\n".join(builtin.texts("train")), add_special_tokens=False)["input_ids"][: 8 * 32]
    norm = model.model.layers[0].input_layernorm
    inputs: Tensor = norm(model.get_input_embeddings()(torch.tensor(ids))).double()
    return inputs


@pytest.mark.parametrize(
    "changes",
    [{"train__also": ["norms"]}, {"train__method": "lora", "merge__apply_mask": True, "train__base": "dense"}],
    ids=["lors", "lora"],
)
def test_the_codes_are_gptqs_on_the_scales_of_the_model(
    lors: Lors, on_codes: WriteConfig, tmp_path: Path, coded: Path, changes: dict[str, Any]
) -> None:
    config, run = on_codes(train__learning_rate=0.1, **changes, **GPTQ), tmp_path / "run"
    lors("train", config)
    rounding = ["merge.requantize=rounding", "merge.calibration=null"]
    lors("merge", config, *rounding)
    rounded = {name: open_quantized(run / "merged").quantized(name) for name in open_quantized(coded).linears}
    lors("merge", config, "--force", "merge.requantize=none", "merge.calibration=null")
    numbers, x = lors_cli.load(run / "merged"), first_inputs(run / "merged")
    assert (
        "gptq on the scales of the model, calibration 8 x 32 tokens"
        in lors("merge", config, "--force", "--dry-run").stdout
    )
    said = lors("merge", config, "--force").stderr
    before, after = open_quantized(coded), open_quantized(run / "merged")
    prepared = gptq.prepare((2 * x.T @ x).float())
    errors = []
    for name in before.linears:
        old, new = before.quantized(name), after.quantized(name)
        assert torch.equal(old.scale, new.scale)
        assert old.zero_point is not None
        assert new.zero_point is not None
        assert torch.equal(old.zero_point, new.zero_point)
        assert not (new.mask() & ~old.mask()).any()
        if name in FIRST:
            weight = numbers.get_parameter(f"{name}.weight").detach()
            wanted = gptq.quantize(weight, prepared, old.grid, torch.float32, old.scales)
            assert torch.equal(new.codes, wanted.codes)
            lost = [(x @ (one.weight().double() - weight).T).norm() for one in (new, rounded[name])]
            errors.append([float(one) for one in lost])
    assert len(errors) == 3
    assert all(ours < nearest for ours, nearest in errors)
    made = json.loads((run / "merged/lors.json").read_text())
    assert (made["requantized"], made["pattern"], made["returned_zeros"]) == ("gptq", "2:4", 0)
    assert 0 < made["output_error"] < 1
    assert f"outputs of {len(before.linears)} linears by {made['output_error']:.4f} on average" in said
    assert not [*run.rglob("gptq")]


def test_linears_without_an_adapter_keep_their_codes(
    lors: Lors, on_codes: WriteConfig, tmp_path: Path, coded: Path
) -> None:
    config = on_codes(train__target_modules=["q_proj", "down_proj"], **GPTQ)
    lors("train", config)
    lors("merge", config)
    before, after = open_quantized(coded), open_quantized(tmp_path / "run/merged")
    same = {name for name in before.linears if torch.equal(before.quantized(name).codes, after.quantized(name).codes)}
    assert same == {name for name in before.linears if not name.endswith(("q_proj", "down_proj"))}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"merge__calibration": ...}, ["merge.calibration", "gptq looks at activations"]),
        ({"merge__requantize": "rounding"}, ["merge.calibration", "only requantize: gptq"]),
        ({"train__quantization_aware": True}, ["merge.requantize", "quantization_aware"]),
        ({"train__input": ..., "train__base": "dense"}, ["merge.requantize", "whose weights are floats"]),
        ({"merge__calibration__samples": 10**6}, ["merge.calibration.dataset", "windows of 32 tokens"]),
    ],
)
def test_what_cannot_be_solved_is_refused_before_the_work(
    lors: Lors, on_codes: WriteConfig, tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    config = on_codes(**{**GPTQ, "merge__calibration": dict(CALIBRATION), **changes})
    said = lors("run", config, "--dry-run", status=2).stderr
    for word in words:
        assert word in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "changes", [{"train__quantization_aware": True}, {"train__input": ..., "train__base": "dense"}]
)
def test_the_remedy_takes_the_calibration_along(lors: Lors, on_codes: WriteConfig, changes: dict[str, Any]) -> None:
    config = on_codes(**GPTQ, **changes)
    said = lors("run", config, "--dry-run", status=2).stderr
    found = re.search(r"on the command line: ([^)]*)", said)
    assert found
    lors("run", config, "--dry-run", *found[1].split())
