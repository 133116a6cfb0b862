"""An adapter is taken by the model that it was made on, in every form that it has, and by no other one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import Result

from lors_cli.adapters import METHODS
from lors_cli.adapters.base import Adapter
from lors_cli.api import attach, load, load_adapter, save_adapter
from lors_cli.artifacts import adapter_file
from lors_cli.models import identity
from tests.test_api import step

Lors = Callable[..., Result]
WriteConfig = Callable[..., Path]
Change = Callable[[dict[str, torch.Tensor]], Any]
LINEAR = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def adapter(pruned: Path, tmp_path: Path) -> Path:
    """Made by the API on the pico model with zeros."""
    return made(AutoModelForCausalLM.from_pretrained(pruned), tmp_path / "adapter")


@pytest.fixture
def merge(lors: Lors, write_config: WriteConfig) -> Callable[..., Result]:
    def run(model: Path, adapter: Path, *options: str, status: int = 0) -> Result:
        return lors(
            "merge", write_config(merge={"input": str(model), "adapter": str(adapter)}), *options, status=status
        )

    return run


def made(model: Any, directory: Path, **options: Any) -> Path:
    torch.manual_seed(0)
    attach(model, rank=4, **options)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, Adapter):
                for tensor in module.tensors().values():
                    tensor.normal_(std=0.1)
    save_adapter(model, directory)
    return directory


def changed(model: Path, target: Path, change: Change, **config: Any) -> Path:
    """A copy of a model with other tensors."""
    shutil.copytree(model, target)
    tensors = load_file(target / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    content = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**content, **config}))
    return target


def rounded(tensors: dict[str, torch.Tensor]) -> None:
    tensors.update({name: tensor.bfloat16() for name, tensor in tensors.items()})


def another_mask(tensors: dict[str, torch.Tensor]) -> None:
    tensors[LINEAR] = tensors[LINEAR].roll(1, 1)


OTHERS: dict[str, tuple[Change, str]] = {
    "another mask": (another_mask, f"another mask in {LINEAR}"),
    "dense": (lambda t: t.update({LINEAR: t[LINEAR] + 0.01}), f"another mask in {LINEAR}"),
    "other weights": (lambda t: t.update({LINEAR: t[LINEAR] * 1.001}), f"other values in {LINEAR}"),
    "one weight": (lambda t: t[LINEAR].view(-1)[int(t[LINEAR].view(-1).nonzero()[0])].mul_(2), "other values"),
    "other embeddings": (lambda t: t["model.embed_tokens.weight"].mul_(2), "other values in model.embed_tokens"),
    "another norm": (lambda t: t["model.norm.weight"].add_(0.5), "other values in model.norm"),
    "rounded": (rounded, "BF16, and it was F32"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_any_other_model_is_refused_by_merge_and_in_memory(
    merge: Callable[..., Result], adapter: Path, pruned: Path, tmp_path: Path, name: str
) -> None:
    change, said = OTHERS[name]
    other = changed(pruned, tmp_path / "other", change, **({"dtype": "bfloat16"} if name == "rounded" else {}))
    assert said in merge(other, adapter, status=2).stderr
    assert not (tmp_path / "run").exists()
    model = load(other)
    with pytest.raises(ValueError, match="another model"):
        load_adapter(model, adapter)
    assert not any(isinstance(module, Adapter) for module in model.modules())
    merge(pruned, adapter)
    load_adapter(load(pruned), adapter)


def test_a_model_that_was_changed_in_memory_is_another(
    merge: Callable[..., Result], pruned: Path, tmp_path: Path
) -> None:
    """Before the adapters were attached, or while they were trained."""
    model: Any = load(pruned)
    model.model.norm.weight.data.mul_(2)
    assert "model.norm" in merge(pruned, made(model, tmp_path / "before"), status=2).stderr
    model = load(pruned)
    attach(model, rank=4)
    model.model.norm.weight.requires_grad_()
    step(model, 2)
    save_adapter(model, tmp_path / "while")
    assert "model.norm" in merge(pruned, tmp_path / "while", status=2).stderr
    plain: Any = load(pruned)  # the remedy: save the model that it was made on
    plain.model.norm.weight.data.copy_(model.model.norm.weight)
    shutil.copytree(pruned, tmp_path / "saved")
    plain.save_pretrained(tmp_path / "saved")
    merge(tmp_path / "saved", tmp_path / "while")


@pytest.mark.parametrize("method", list(METHODS))
def test_the_same_tensors_in_other_files_are_the_same_model(
    merge: Callable[..., Result], pruned: Path, tmp_path: Path, method: str
) -> None:
    adapter = made(load(pruned), tmp_path / "adapter", method=method)
    shutil.copytree(pruned, tmp_path / "copy")
    (tmp_path / "copy/model.safetensors").unlink()
    load(pruned).save_pretrained(tmp_path / "copy", max_shard_size="40KB")
    assert len(list((tmp_path / "copy").glob("*.safetensors"))) > 1
    merge(tmp_path / "copy", adapter, *([] if METHODS[method].keeps_zeros else ["merge.apply_mask=true"]))
    load_adapter(load(tmp_path / "copy"), adapter)


def test_what_was_trained_in_16_bits_belongs_to_the_files_and_their_rounded_copy(
    merge: Callable[..., Result], pruned: Path, tmp_path: Path
) -> None:
    adapter = made(load(pruned, dtype="bfloat16"), tmp_path / "adapter", packed=True)
    copy = changed(pruned, tmp_path / "rounded", rounded, dtype="bfloat16")
    merge(pruned, adapter)
    merge(copy, adapter, f"output_dir={tmp_path}/other")
    load_adapter(load(pruned), adapter)
    load_adapter(load(copy), adapter)
    wrong = changed(pruned, tmp_path / "wrong", lambda t: t[LINEAR].mul_(1.1))
    with pytest.raises(ValueError, match="another model"):
        load_adapter(load(wrong, dtype="bfloat16"), adapter)


def test_what_was_trained_in_32_bits_belongs_to_its_files_in_16(
    merge: Callable[..., Result], pruned: Path, tmp_path: Path
) -> None:
    copy = changed(pruned, tmp_path / "rounded", rounded, dtype="bfloat16")
    adapter = made(load(copy, dtype="float32"), tmp_path / "adapter")
    merge(copy, adapter)
    load_adapter(load(copy), adapter)
    assert "other values" in merge(pruned, adapter, status=2).stderr


def test_a_smaller_dtype_in_memory_is_proved_by_the_files(adapter: Path, pruned: Path, tmp_path: Path) -> None:
    load_adapter(load(pruned, dtype="bfloat16"), adapter)
    model: Any = load(pruned, dtype="bfloat16")
    model.model.norm.weight.data.mul_(2)
    with pytest.raises(ValueError, match="another model"):
        load_adapter(model, adapter)
    copy = changed(pruned, tmp_path / "rounded", rounded, dtype="bfloat16")
    with pytest.raises(ValueError, match="another model"):
        load_adapter(load(copy), adapter)


def unrecorded(adapter: Path, named: str | None) -> None:
    """As an older version wrote it."""
    path = adapter / adapter_file.WEIGHTS
    save_file(load_file(path), path, metadata={"format": "pt"})
    config = json.loads((adapter / adapter_file.CONFIG).read_text())
    (adapter / adapter_file.CONFIG).write_text(json.dumps({**config, adapter_file.NAMED: named}))


def test_an_older_adapter_is_taken_by_its_name_and_the_remedy_works(
    merge: Callable[..., Result], adapter: Path, pruned: Path, tmp_path: Path
) -> None:
    unrecorded(adapter, str(pruned))
    merge(pruned, adapter)
    load_adapter(load(pruned), adapter)
    copy = changed(pruned, tmp_path / "copy", lambda _: None)
    merge(copy, adapter, f"output_dir={tmp_path}/other")
    load_adapter(load(copy), adapter)
    other = changed(pruned, tmp_path / "another", another_mask)
    assert f"another mask in {LINEAR}" in merge(other, adapter, status=2).stderr
    with pytest.raises(ValueError, match="another mask"):
        load_adapter(load(other), adapter)
    model: Any = load(pruned)
    model.model.norm.weight.data.mul_(2)
    with pytest.raises(ValueError, match=r"model\.norm"):
        load_adapter(model, adapter)
    for named in ("somebody/model", None):
        unrecorded(adapter, named)
        said = merge(copy, adapter, status=2).stderr
        assert f'write "{adapter_file.NAMED}": "{copy}"' in said
        with pytest.raises(ValueError, match="may be another"):
            load_adapter(load(copy), adapter)
    unrecorded(adapter, str(copy))
    merge(copy, adapter, f"output_dir={tmp_path}/followed")


def test_a_name_proves_nothing_where_the_weights_are_newer_and_the_remedies_work(
    merge: Callable[..., Result], adapter: Path, pruned: Path, tmp_path: Path
) -> None:
    """A model that was pruned again in its place, since an adapter was made on it by PEFT or by an older version."""
    place = changed(pruned, tmp_path / "place", lambda _: None)
    copy = changed(pruned, tmp_path / "copy", lambda _: None)
    unrecorded(adapter, str(place))
    merge(place, adapter, f"output_dir={tmp_path}/before")
    weights = load_file(place / "model.safetensors")
    another_mask(weights)
    save_file(weights, place / "model.safetensors", metadata={"format": "pt"})
    said = merge(place, adapter, status=2).stderr
    assert "written after the adapter" in said
    assert f"touch {adapter / adapter_file.CONFIG}" in said
    with pytest.raises(ValueError, match="written after the adapter"):
        load_adapter(load(place), adapter)
    assert f'write "{adapter_file.NAMED}": "{copy}"' in merge(copy, adapter, status=2).stderr
    unrecorded(adapter, str(copy))
    merge(copy, adapter, f"output_dir={tmp_path}/copied")
    unrecorded(adapter, str(place))  # written now, as by touch
    merge(place, adapter, f"output_dir={tmp_path}/touched")


def test_a_lora_adapter_without_a_name_is_taken_at_its_word(
    merge: Callable[..., Result], pruned: Path, tmp_path: Path
) -> None:
    adapter = made(load(pruned), tmp_path / "adapter", method="lora")
    unrecorded(adapter, None)
    assert "does not say on which model" in merge(pruned, adapter, "merge.apply_mask=true").stderr
    unrecorded(adapter, "somebody/model")
    assert "somebody/model" in merge(pruned, adapter, "merge.apply_mask=true", status=2).stderr


def test_what_the_commands_made_is_told_apart_also_without_its_manifest(
    lors: Lors, write_config: WriteConfig, merge: Callable[..., Result], tmp_path: Path
) -> None:
    config = write_config(eval__models=["tuned"])
    lors("prune", config)
    lors("train", config)
    run, other = tmp_path / "run", tmp_path / "other"
    load_adapter(load(run / "pruned"), run / "adapter")
    lors("prune", config, f"output_dir={other}", "prune.method=magnitude")
    with pytest.raises(ValueError, match="another mask"):
        load_adapter(load(other / "pruned"), run / "adapter")
    assert "its digest differs" in merge(other / "pruned", run / "adapter", status=2).stderr
    config = write_config(eval__models=["tuned"], train__input=str(other / "pruned"))
    assert "its digest differs" in lors("eval", config, status=2).stderr
    (run / "adapter/lors.json").unlink()
    assert "another mask" in merge(other / "pruned", run / "adapter", f"output_dir={tmp_path}/new", status=2).stderr
    merge(run / "pruned", run / "adapter", f"output_dir={tmp_path}/new")


def test_digests_name_what_differs() -> None:
    torch.manual_seed(0)
    tensors = {"a.weight": torch.randn(3, 4), "a.bias": torch.zeros(3)}
    recorded = identity.of(tensors.items())
    assert json.loads(json.dumps(recorded)) == {name: list(digests) for name, digests in recorded.items()}
    assert recorded["a.bias"].mask is None
    assert identity.difference(recorded, tensors.items()) is None
    assert identity.difference(recorded, [("a.weight", tensors["a.weight"])]) == "has no tensor a.bias"
    assert "b.weight" in str(identity.difference(recorded, {**tensors, "b.weight": torch.ones(1)}.items()))
    reshaped = {**tensors, "a.weight": tensors["a.weight"].reshape(4, 3)}
    assert identity.difference(recorded, reshaped.items())
