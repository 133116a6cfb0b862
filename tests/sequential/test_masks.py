"""Masks by the names of the model's modules, whatever the files call them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lors_cli.artifacts.model_files import SINGLE
from lors_cli.errors import RequestError
from lors_cli.sequential.masks import Masks
from tests.models.test_weights import llama, neox, set_config, with_vision


@pytest.mark.parametrize("make", [llama, neox, with_vision])
def test_the_zeros_of_a_model_whose_files_have_other_names(
    make: Callable[[Path], Any], tmp_path: Path, lors: Callable[..., Any]
) -> None:
    make(tmp_path / "model")
    config = {"model": str(tmp_path / "model"), "output_dir": str(tmp_path / "run"), "device": "cpu"}
    prune = {"method": "magnitude", "sparsity": 0.5}
    (tmp_path / "a.yaml").write_text(json.dumps({**config, "prune": prune}))
    lors("prune", tmp_path / "a.yaml")
    prune = {"method": "from_mask", "mask": str(tmp_path / "run/pruned")}
    (tmp_path / "b.yaml").write_text(json.dumps({**config, "output_dir": str(tmp_path / "again"), "prune": prune}))
    lors("prune", tmp_path / "b.yaml")
    one, other = (load_file(tmp_path / run / "pruned" / SINGLE) for run in ("run", "again"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_mask_is_called_like_its_weight_or_like_its_linear(tmp_path: Path) -> None:
    save_file({"a.weight": torch.ones(2, 3), "b": torch.zeros(1, 2)}, tmp_path / "masks.safetensors")
    masks = Masks(tmp_path / "masks.safetensors")
    assert [masks.shape(name) for name in "abc"] == [(2, 3), (1, 2), None]
    assert masks.tensor("b").shape == (1, 2)


def test_a_model_that_cannot_be_read_is_refused_as_the_mask_that_it_was_to_be(tmp_path: Path) -> None:
    llama(tmp_path)
    set_config(tmp_path, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(RequestError, match="quantization_config") as caught:
        Masks(tmp_path)
    assert caught.value.problems[0].key == "prune.mask"
