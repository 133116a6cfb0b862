"""LoRAM where pruning leaves zeros: an update that was masked in training, on the original with its mask or without."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM
from typer.testing import Result

from lors_cli import api
from lors_cli.adapters import METHODS
from lors_cli.artifacts import adapter_file

Lors = Callable[..., Result]
WriteConfig = Callable[..., Path]
IDS = torch.arange(40)[None]
HEAD = ["*", "lm_head"]
PLACE = "model.layers.0.self_attn.k_proj"


@pytest.mark.parametrize("method", ["sqft", "lors"])
def test_the_example_in_float64(
    lors: Lors, write_config: WriteConfig, make_model: Callable[..., Path], tmp_path: Path, method: str
) -> None:
    """W0 and M of two rows and four columns, M the last two columns: by hand, through prune, recover and merge."""
    shape: dict[str, Any] = {"hidden_size": 4, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 2}
    model = make_model(tmp_path / "m", dtype=torch.float64, tie_word_embeddings=False, **shape)
    tensors = load_file(model / "model.safetensors")
    tensors[f"{PLACE}.weight"] = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]], dtype=torch.float64)
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    config = write_config(
        model=str(model),
        dtype="auto",
        prune={"method": "magnitude", "sparsity": "2:4"},
        train={**json.loads(write_config().read_text())["train"], "method": method, "rank": 1, "alpha": 1},
        recover={"adapter": str(tmp_path / "adapter")},
        eval=...,
    )
    lors("prune", config)
    small = api.load(tmp_path / "run/pruned")
    weight = small.get_submodule(PLACE).weight
    assert weight.tolist() == [[0, 0, 3, 4], [0, 0, 7, 8]]
    api.attach(small, method=method, rank=1, alpha=1, target_modules=["*"])
    adapter: Any = small.get_submodule(PLACE)
    with torch.no_grad():
        for module in small.modules():
            if hasattr(module, "lora_B"):
                module.lora_A.zero_()
        adapter.lora_A.copy_(torch.ones(1, 4))
        adapter.lora_B.copy_(torch.tensor([[1.0], [2.0]]))
    y = adapter(torch.tensor([[1.0, 0, 0, 0]], dtype=torch.float64))
    y.sum().backward()
    assert y.tolist() == [[0, 0]]
    expected = {"sqft": ([[0, 0, 0, 0]], [[0], [0]]), "lors": ([[3, 0, 0, 0]], [[1], [1]])}[method]
    assert (adapter.lora_A.grad.tolist(), adapter.lora_B.grad.tolist()) == expected
    api.save_adapter(small, tmp_path / "adapter")

    def merged(mask: str) -> Tensor:
        for stage in ("recover", "merge"):
            lors(stage, config, f"recover.mask={mask}", "--force")
        weight: Tensor = load_file(tmp_path / "run/merged/model.safetensors")[f"{PLACE}.weight"]
        return weight

    kept = merged("kept")
    assert kept.dtype == torch.float64
    assert kept.tolist() == [[1, 2, 4, 5], [5, 6, 9, 10]]
    assert merged("none").tolist() == [[2, 3, 4, 5], [7, 8, 9, 10]]


def run_all(
    lors: Lors, write_config: WriteConfig, model: Path, mask: str, method: str = "sqft", **changes: Any
) -> None:
    """Prune 4:8 (unless changed), train on all linears and the head, recover and merge."""
    settings = {"prune__sparsity": "4:8", "train__method": method, "train__target_modules": HEAD, "eval": ...}
    lors("run", write_config(model=str(model), **{**settings, "recover__mask": mask, **changes}))


@pytest.fixture(scope="module")
def model(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a tied head, in two shards."""
    return make_model(tmp_path_factory.mktemp("masked") / "m", shard="60KB")


@pytest.mark.parametrize(("method", "sparsity", "align"), [("sqft", "4:8", False), ("lors", 0.5, True)])
def test_kept_is_the_trained_update_on_the_original(
    lors: Lors, write_config: WriteConfig, model: Path, tmp_path: Path, method: str, sparsity: object, align: bool
) -> None:
    train = json.loads(write_config().read_text())["train"]
    aligned = {"align": {**train, "method": "full", "rank": 4, "max_steps": 1}} if align else {}
    aligned.get("align", {}).pop("rank", None)
    run_all(lors, write_config, model, "kept", method, prune__sparsity=sparsity, **aligned)
    run = tmp_path / "run"
    trained = adapter_file.load(run / "adapter", "")
    small = api.load(run / ("aligned" if align else "pruned")).state_dict()
    before = AutoModelForCausalLM.from_pretrained(model).state_dict()
    after = AutoModelForCausalLM.from_pretrained(run / "merged").state_dict()
    assert "lm_head" in trained.modules
    for name, weight in before.items():
        module = name.removesuffix(".weight")
        wanted = weight
        if named := trained.modules.get(module):
            update = trained.alpha / trained.rank * named["lora_B"] @ named["lora_A"]
            wanted = weight + update * (small[name] != 0)
            kept = small[name] != 0
            assert module == "lm_head" or not kept.all()
            assert torch.equal(after[name][~kept], weight[~kept])  # bit for bit
            assert named["lora_B"].any()
            assert not torch.equal(after[name][kept], weight[kept])
        torch.testing.assert_close(after[name], wanted)
    facts = json.loads(lors("inspect", run / "recovered", "--json").stdout)
    assert facts["method"] == "loram"
    assert facts["parameters"] == sum(t.numel() for named in trained.modules.values() for t in named.values())
    head = small["lm_head.weight"].numel()
    linears = sum(small[f"{module}.weight"].numel() for module in trained.modules) - head
    assert facts["mask_kept"] == pytest.approx(
        (linears / 2 + head) / (linears + head), abs=2e-3
    )  # the head has a row of zeros, that of the padding
    said = lors("inspect", run / "recovered").stdout
    assert "for `lors merge` alone" in said


def test_plain_peft_and_the_api_refuse_kept(lors: Lors, write_config: WriteConfig, model: Path, tmp_path: Path) -> None:
    run_all(lors, write_config, model, "kept")
    recovered = tmp_path / "run/recovered"
    with pytest.raises(Exception, match="LORAM"):
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), recovered)
    with pytest.raises(ValueError, match=r"lors merge.* alone: load the merged model"):
        api.load_adapter(api.load(model), recovered)
    card = (recovered / "README.md").read_text()
    assert "library_name: lors" in card
    assert "masked as sqft trained it" in card
    assert "lors merge merge.yaml" in card
    assert "weights that pruning had removed are as they were" in (tmp_path / "run/merged/README.md").read_text()
    # a merge elsewhere, which names both, as the card does
    lors("merge", tmp_path / "config.yaml", "recover=null", f"output_dir={tmp_path / 'by_name'}",
         f"merge={{input: {model}, adapter: {recovered}}}")  # fmt: skip
    one, other = (load_all(tmp_path / folder / "merged") for folder in ("run", "by_name"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    small = tmp_path / "run/pruned"
    said = lors("merge", tmp_path / "config.yaml", "recover=null", f"output_dir={tmp_path / 'wrong'}",
                f"merge={{input: {small}, adapter: {recovered}}}", status=2).stderr  # fmt: skip
    assert "made on another model" in said


def load_all(directory: Path) -> dict[str, Tensor]:
    return {name: tensor for path in directory.glob("*.safetensors") for name, tensor in load_file(path).items()}


def test_none_is_a_peft_adapter(lors: Lors, write_config: WriteConfig, model: Path, tmp_path: Path) -> None:
    run_all(lors, write_config, model, "none")
    recovered = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), tmp_path / "run/recovered")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "run/merged")
    with torch.no_grad():
        torch.testing.assert_close(recovered(IDS).logits, merged(IDS).logits, atol=1e-5, rtol=1e-4)
    card = (tmp_path / "run/recovered/README.md").read_text()
    assert "which sqft had masked in training" in card
    assert "PeftModel" in card
    assert json.loads((tmp_path / "run/recovered/lors.json").read_text())["trained"] == "sqft"


@pytest.mark.parametrize("method", ["lora", "spp", "full"])
def test_a_method_whose_update_has_no_such_mask_is_refused(lors: Lors, write_config: WriteConfig, method: str) -> None:
    """Before anything is pruned."""
    changes: dict[str, Any] = {
        "prune__sparsity": "4:8",
        "train__method": method,
        "train__init": "random",
        "recover__mask": "kept",
    }
    if not METHODS[method].low_rank:
        changes.pop("train__init")
    if not METHODS[method].has_rank:
        changes["train__rank"] = ...
    said = lors("run", write_config(**changes), status=2).stderr
    assert "recover.mask" in said if method == "lora" else "recover.adapter" in said
    assert "lors" in said
    assert "sqft" in said


def test_a_model_whose_mask_is_gone_is_refused(
    lors: Lors, write_config: WriteConfig, dense: Path, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"prune": ..., "train__method": "sqft", "train__target_modules": ["*"], "eval": ...}
    config = write_config(**changes, train__input=str(dense), recover__mask="kept")
    said = lors("run", config, status=2).stderr
    assert "none of whose 14 adapted linears has zeros" in said
    assert not (tmp_path / "run/adapter").exists()
    lors("run", config, "recover.mask=none")


def test_a_structured_model_has_no_mask(lors: Lors, write_config: WriteConfig, tmp_path: Path) -> None:
    prune = {"method": "structured_random", "ratio": 0.5, "keep_first": 0, "keep_last": 1}
    config = write_config(prune=prune, train__method="lora", recover__mask="kept", eval=...)
    assert "what structured pruning removed is zero" in lors("run", config, status=2).stderr
    config = write_config(prune=prune, train__method="sqft", recover={}, eval=...)
    assert "a smaller model has no zeros to keep" in lors("run", config, status=2).stderr
    assert not (tmp_path / "run/pruned").exists()


def test_channels_that_were_moved_are_refused(lors: Lors, write_config: WriteConfig, tmp_path: Path) -> None:
    """RIA's permutation puts the channels of the pruned model elsewhere than the original has them."""
    changes = {"prune__method": "ria", "prune__permute": True, "train__method": "lora", "recover": {}, "eval": ...}
    config = write_config(**changes)
    assert "prune.permute" in lors("run", config, status=2).stderr
    lors("prune", config)
    lors("train", config)
    for stage in ("run", "recover"):
        said = lors(stage, config, *(["prune=null"] if stage == "recover" else []), status=2).stderr
        assert "permute: false" in said
    assert not (tmp_path / "run/recovered").exists()


def test_another_original_is_named_before_any_work(
    lors: Lors, write_config: WriteConfig, make_model: Callable[..., Path], dense: Path, tmp_path: Path
) -> None:
    other = make_model(tmp_path / "other", seed=5)
    changes: dict[str, Any] = {
        "train__method": "sqft",
        "recover__mask": "kept",
        "prune__input": str(other),
        "eval": ...,
    }
    said = lors("run", write_config(**changes), status=2).stderr
    assert f"{dense}, another one" in said
    assert not (tmp_path / "run").exists()
    copy = make_model(tmp_path / "copy")  # of the same model
    lors("run", write_config(**{**changes, "prune__input": str(copy)}))


def test_a_mask_at_the_merge_is_not_one_of_the_original(lors: Lors, write_config: WriteConfig) -> None:
    config = write_config(train__method="lora", recover={}, merge={"apply_mask": True}, eval=...)
    assert "merge.apply_mask" in lors("run", config, status=2).stderr


def test_moved_channels_show_in_the_weights(lors: Lors, write_config: WriteConfig, tmp_path: Path) -> None:
    """Of a pruned model that has lost its manifest, or that another tool made."""
    changes: dict[str, Any] = {"prune__method": "ria", "train__method": "lora", "recover": {}, "eval": ...}
    moved, stayed = tmp_path / "moved", tmp_path / "stayed"
    for directory, permute in ((moved, True), (stayed, False)):
        config = write_config(**changes, prune__permute=permute, output_dir=str(directory))
        lors("prune", config)
        lors("train", config)
        (directory / "pruned/lors.json").unlink()
        (directory / "pruned/README.md").unlink(missing_ok=True)
    asked = [f"train.input={moved}/pruned", f"recover.input={moved}/pruned", f"recover.adapter={moved}/adapter"]
    config = write_config(**changes, prune=...)
    said = lors("recover", config, *asked, status=2).stderr
    assert "rows that the original has elsewhere" in said or "columns that the original has elsewhere" in said
    assert not (tmp_path / "run/recovered").exists()
    lors("recover", config, *(text.replace("/moved/", "/stayed/") for text in asked))
