import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import Result

from lors_cli.adapters import METHODS
from lors_cli.adapters.replace import replace_linears
from lors_cli.artifacts import adapter_file
from lors_cli.stages import merge
from tests.stages.test_prune import weights

Lors = Callable[..., Result]
WriteConfig = Callable[..., Path]
KEEPING = [name for name, row in METHODS.items() if row.keeps_zeros]


@pytest.mark.parametrize("pattern", [0.5, "2:4", "1:4", "3:4"], ids=str)
@pytest.mark.parametrize("method", KEEPING)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_zero_is_kept_and_the_logits_are_the_adapted_models(
    lors: Lors, write_config: WriteConfig, tmp_path: Path, method: str, pattern: object, dtype: str
) -> None:
    rank = 4 if METHODS[method].has_rank else ...
    config = write_config(train__method=method, train__rank=rank, prune__sparsity=pattern, dtype=dtype)
    for stage in ("prune", "train", "merge"):
        lors(stage, config)
    run = tmp_path / "run"
    pruned, merged = weights(run / "pruned"), weights(run / "merged")
    for name, weight in merged.items():
        assert not ((pruned[name] == 0) & (weight != 0)).any()
        assert not torch.signbit(weight[weight == 0]).any()
        assert not torch.equal(weight, pruned[name])
    manifest = json.loads((run / "merged/lors.json").read_text())
    assert manifest["returned_zeros"] == 0

    content = adapter_file.load(run / "adapter", "k")
    adapted = AutoModelForCausalLM.from_pretrained(run / "pruned")
    attached = replace_linears(
        adapted, list(content.modules), METHODS[method].adapter, rank=content.rank, alpha=content.alpha
    )
    with torch.no_grad():
        for module, adapter in attached.items():
            for name, parameter in adapter.tensors().items():
                parameter.copy_(content.modules[module][name])
        ids = torch.arange(1, 40)[None]
        plain = AutoModelForCausalLM.from_pretrained(run / "merged")
        tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == "float32" else {"rtol": 0.05, "atol": 0.05}
        torch.testing.assert_close(plain(ids).logits, adapted(ids).logits, **tolerance)  # type: ignore[arg-type]


def test_lora_is_refused_unless_asked_for(lors: Lors, write_config: WriteConfig, tmp_path: Path) -> None:
    config = write_config(train__method="lora")
    refused = lors("run", config, status=2)
    assert "fills the zeros" in refused.stderr
    assert not (tmp_path / "run").exists()  # said before the pruning
    lors("prune", config)
    lors("train", config)
    assert "fills the zeros" in lors("merge", config, status=2).stderr
    lors("merge", config, "merge.apply_mask=true")
    assert json.loads(lors("inspect", tmp_path / "run/merged", "--json").stdout)["pattern"] == "2:4"
    lors("merge", config, "merge.dense=true", "--force")
    assert json.loads(lors("inspect", tmp_path / "run/merged", "--json").stdout)["pattern"] == "dense"
    assert "dense" in lors("merge", config, "merge.dense=true", "merge.apply_mask=true", status=2).stderr


def test_an_adapter_of_another_model_is_refused(
    lors: Lors, write_config: WriteConfig, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    config = write_config()
    lors("prune", config)
    lors("train", config)
    other = tmp_path / "other"
    lors("prune", config, f"output_dir={other}", "prune.sparsity=0.5")
    refused = lors("merge", config, f"merge.input={other / 'pruned'}", status=2)
    assert "merge.adapter" in refused.stderr
    assert "its digest differs" in refused.stderr
    (tmp_path / "run/adapter/lors.json").unlink()  # then the shapes still tell
    wide = make_model(tmp_path / "wide", intermediate_size=128)
    refused = lors("merge", config, f"merge.input={wide}", f"merge.adapter={tmp_path}/run/adapter", status=2)
    assert "does not fit" in refused.stderr


def test_a_sparse_model_of_any_origin_goes_through(
    lors: Lors, write_config: WriteConfig, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    model = make_model(tmp_path / "foreign", seed=5)
    tensors = load_file(model / "model.safetensors")
    for name, tensor in tensors.items():
        if "proj" in name:
            tensor[torch.rand_like(tensor) < 0.6] = -0.0
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    config = write_config(prune=..., train__input=str(model), eval__models=["pruned", "merged"])
    lors("run", config)
    merged = weights(tmp_path / "run/merged")
    for name, weight in merged.items():
        assert not ((tensors[name] == 0) & (weight != 0)).any()
        assert not torch.signbit(weight[weight == 0]).any()


def test_the_proof_finds_a_zero_that_came_back(
    lors: Lors, write_config: WriteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config()
    lors("prune", config)
    lors("train", config)
    honest = merge._merged_tensors

    def faulty(*args: object):  # type: ignore[no-untyped-def]
        for name, tensor in honest(*args):  # type: ignore[arg-type]
            if name == "model.layers.1.mlp.up_proj.weight":
                tensor[3, (tensor[3] == 0).nonzero()[0]] = 1e-6
            yield name, tensor

    monkeypatch.setattr(merge, "_merged_tensors", faulty)
    result = lors("merge", config, status=1)
    assert "model.layers.1.mlp.up_proj" in result.stderr
    assert not (tmp_path / "run/merged").exists()
    assert not (tmp_path / "run/.merged.partial").exists()


def test_a_damaged_or_edited_input_is_found(lors: Lors, write_config: WriteConfig, tmp_path: Path) -> None:
    config = write_config()
    lors("prune", config)
    path = tmp_path / "run/pruned/model.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    assert "damaged or edited" in lors("train", config, status=1).stderr
    path.write_bytes(content[:-100])
    (tmp_path / "run/pruned/lors.json").unlink()
    result = lors("train", config, f"train.input={path.parent}", status=2)
    assert "truncated or damaged" in result.stderr
    assert not (tmp_path / "run/adapter").exists()
