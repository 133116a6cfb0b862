"""Norms and biases that are trained beside the adapters, from the config to every place where they count."""

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import Result

from lors_cli.adapters import METHODS
from lors_cli.api import load_adapter, save_adapter
from lors_cli.artifacts import adapter_file
from lors_cli.stages import merge
from lors_cli.training import checkpoint
from tests.training.outcome import adapter, manifest, same, unbroken

Lors = Callable[..., Result]
WriteConfig = Callable[..., Path]
IDS = torch.arange(1, 40)[None]
NORMS = [
    *(f"model.layers.{i}.{place}_layernorm.weight" for i in (0, 1) for place in ("input", "post_attention")),
    "model.norm.weight",
]
FIRST = "model.layers.0.self_attn.q_proj"
WAYS = [(name, way) for name, row in METHODS.items() for way in row.formulations]
DTYPES = ["bfloat16", "float32"]


@pytest.fixture
def biased(make_model: Callable[..., Path], tmp_path: Path) -> Path:
    """A pico Llama with biases in the linears of attention, and random numbers in norms and biases."""
    path = make_model(tmp_path / "biased", attention_bias=True, initializer_range=0.1)
    tensors = load_file(path / "model.safetensors")
    for tensor in tensors.values():
        if tensor.dim() == 1:
            tensor += 0.1 * torch.randn_like(tensor)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model.eval()(IDS).logits.float()
    return result


def changed(run: Path, stage: str = "merged") -> set[str]:
    """The tensors of a model that differ from those of the pruned one."""
    before, after = load_file(run / "pruned/model.safetensors"), load_file(run / stage / "model.safetensors")
    assert before.keys() == after.keys()
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


@pytest.mark.parametrize(("method", "way", "dtype"), [(*way, DTYPES[n % 2]) for n, way in enumerate(WAYS)])
def test_the_merged_model_is_the_tuned_one(
    lors: Lors, write_config: WriteConfig, biased: Path, tmp_path: Path, method: str, way: str, dtype: str
) -> None:
    rank = 4 if METHODS[method].has_rank else ...
    config = write_config(
        model=str(biased),
        dtype=dtype,
        train__method=method,
        train__formulation=way,
        train__rank=rank,
        train__also=["norms", "biases"],
        merge__dense=not METHODS[method].keeps_zeros,
    )
    for stage in ("prune", "train", "merge"):
        lors(stage, config)
    run = tmp_path / "run"
    linears = {name for name in load_file(run / "pruned/model.safetensors") if name.endswith("proj.weight")}
    biases = {f"{name.removesuffix('weight')}bias" for name in linears if "self_attn" in name}
    assert changed(run) == linears | biases | set(NORMS)
    content = adapter_file.load(run / "adapter", "k")
    assert content.vectors.keys() == biases | set(NORMS)
    assert all(vector.dtype == torch.float32 for vector in content.vectors.values())
    merged = load_file(run / "merged/model.safetensors")
    for name, vector in content.vectors.items():  # one rounding of the master
        assert torch.equal(merged[name], vector.to(merged[name].dtype))
    assert set(manifest(tmp_path)["also"]) == content.vectors.keys()
    assert json.loads((run / "merged/lors.json").read_text())["also"] == list(content.vectors)
    tuned = load_adapter(AutoModelForCausalLM.from_pretrained(run / "pruned", dtype="auto"), run / "adapter")
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == "float32" else {"rtol": 0.05, "atol": 0.05}
    plain = AutoModelForCausalLM.from_pretrained(run / "merged", dtype="auto")
    torch.testing.assert_close(logits(plain), logits(tuned), **tolerance)  # type: ignore[arg-type]


def test_peft_takes_norms_and_biases_along(lors: Lors, write_config: WriteConfig, biased: Path, tmp_path: Path) -> None:
    config = write_config(model=str(biased), train__method="lora", train__also=["norms", "biases"])
    for stage in ("prune", "train"):
        lors(stage, config)
    lors("merge", config, "merge.dense=true")
    run = tmp_path / "run"
    tuned: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(run / "pruned"), str(run / "adapter"))
    merged = AutoModelForCausalLM.from_pretrained(run / "merged")
    torch.testing.assert_close(logits(merged), logits(tuned), rtol=1e-4, atol=1e-5)
    for name, tensor in tuned.merge_and_unload().state_dict().items():
        torch.testing.assert_close(merged.state_dict()[name], tensor, rtol=1e-6, atol=1e-7)


def test_norms_have_their_own_rate_and_no_decay(lors: Lors, write_config: WriteConfig, tmp_path: Path) -> None:
    """One step of AdamW moves each number by the rate, whatever its gradient is."""
    config = write_config(
        train__also=["norms"], train__max_steps=1, train__weight_decay=0.5, train__also_learning_rate=3e-3
    )
    lors("prune", config)
    lors("train", config)
    for rate in (3e-3, 1e-2):
        for vector in adapter_file.load(tmp_path / "run/adapter", "k").vectors.values():
            torch.testing.assert_close((vector - 1).abs(), torch.full_like(vector, rate), rtol=0.05, atol=0)
        lors("train", config, "train.also_learning_rate=null", "--force")  # then it is learning_rate


@pytest.mark.parametrize(
    "options",
    [
        {"train__base": "packed", "train__merge_cache": "full", "train__gradient_checkpointing": True},
        {"train__distill": {"teacher": "dense"}, "train__init": "gradient_svd", "train__chunked_loss": False},
    ],
    ids=["packed", "distill"],
)
def test_an_interrupted_training_ends_with_the_same_bits(
    lors: Lors,
    write_config: WriteConfig,
    biased: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
) -> None:
    config = write_config(
        model=str(biased),
        dtype="bfloat16",
        train__also=["biases", "norms"],
        train__max_steps=6,
        train__save_steps=2,
        train__eval_dataset={"path": "python-topics", "split": "test", "limit": 1},
        train__eval_steps=2,
        **options,
    )
    lors("prune", config)
    whole = unbroken(lors, tmp_path, config)
    assert any(name.endswith("model.norm.weight") for name in whole)
    with monkeypatch.context() as patch:
        save = checkpoint.save_adapters

        def full(adapters: Any, directory: Path) -> None:
            save(adapters, directory)
            if "checkpoint-4" in directory.name:
                raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(checkpoint, "save_adapters", full)
        lors("train", config, status=1)
    assert "resuming from checkpoint-2" in lors("train", config).stderr
    assert same(adapter(tmp_path), whole)


def test_what_a_model_does_not_have_is_refused(lors: Lors, write_config: WriteConfig, tmp_path: Path) -> None:
    config = write_config(train__also=["norms", "biases"])
    refused = lors("run", config, status=2).stderr
    assert "train.also" in refused
    assert "leave biases out" in refused
    assert not (tmp_path / "run").exists()
    said = lors("run", config, "train.also=[norms]", "--dry-run")
    assert "160 of them of norms" in said.stdout + said.stderr
    assert "once" in lors("run", config, "train.also=[norms,norms]", status=2).stderr
    assert (
        "also_learning_rate" in lors("run", config, "train.also=[]", "train.also_learning_rate=1e-3", status=2).stderr
    )


def test_recovery_refuses_norms_of_the_pruned_model(lors: Lors, write_config: WriteConfig, tmp_path: Path) -> None:
    config = write_config(
        prune={"method": "structured_random", "ratio": 0.5, "keep_first": 1, "keep_last": 0},
        train__method="lora",
        train__also=["norms"],
        recover={},
        eval=...,
    )
    assert "train without train.also" in lors("run", config, status=2).stderr
    assert not (tmp_path / "run").exists()
    for stage in ("prune", "train"):
        lors(stage, config)
    adapter_directory = tmp_path / "run/adapter"
    said = lors("recover", config, f"recover.adapter={adapter_directory}", "train=null", status=2).stderr
    assert "model.layers.0.input_layernorm.weight" in said
    lors("merge", write_config(merge={"input": str(tmp_path / "run/pruned"), "adapter": str(adapter_directory)}))
    assert {name for name in changed(tmp_path / "run") if "norm" in name} == set(NORMS)
    lors("run", config, "train.also=null", "--force")  # what the refusal asks for


def test_an_alignment_trains_norms_too(lors: Lors, write_config: WriteConfig, tmp_path: Path) -> None:
    text = {"dataset": "python-topics", "sequence_length": 32, "batch_size": 4, "max_steps": 2}
    config = write_config(align={**text, "also": ["norms"]})
    for stage in ("prune", "align"):
        lors(stage, config)
    assert set(NORMS) <= changed(tmp_path / "run", "aligned")
    assert json.loads((tmp_path / "run/aligned/lors.json").read_text())["also"] == NORMS


def test_the_proof_finds_a_norm_that_should_not_have_changed(
    lors: Lors, write_config: WriteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(train__also=["norms"])
    for stage in ("prune", "train"):
        lors(stage, config)
    honest = merge._merged_tensors
    for wrong in ("model.norm.weight", "model.embed_tokens.weight"):

        def faulty(*args: Any, wrong: str = wrong) -> Any:
            for name, tensor in honest(*args):
                yield name, tensor + 2**-20 if name == wrong else tensor

        monkeypatch.setattr(merge, "_merged_tensors", faulty)
        assert wrong in lors("merge", config, status=1).stderr
        assert not (tmp_path / "run/merged").exists()


def test_a_file_with_more_or_less_than_its_config_says_is_refused(
    lors: Lors, write_config: WriteConfig, biased: Path, tmp_path: Path
) -> None:
    config = write_config(model=str(biased), train__also=["norms", "biases"])
    for stage in ("prune", "train"):
        lors(stage, config)
    pruned, made = tmp_path / "run/pruned", tmp_path / "run/adapter"
    tensors, said = load_file(made / adapter_file.WEIGHTS), json.loads((made / adapter_file.CONFIG).read_text())
    metadata = {"format": "pt"}
    with safe_open(made / adapter_file.WEIGHTS, "pt") as file:
        metadata = file.metadata()
    norm, bias = f"{adapter_file.PREFIX}model.norm.weight", f"{adapter_file.PREFIX}{FIRST}.base_layer.bias"
    place = tmp_path / "other"
    place.mkdir()
    section = write_config(merge={"input": str(pruned), "adapter": str(place)})

    def merged(status: int, change: dict[str, Any], **options: Any) -> str:
        content = {name: value for name, value in {**tensors, **change}.items() if value is not None}
        save_file(content, place / adapter_file.WEIGHTS, metadata=metadata)
        (place / adapter_file.CONFIG).write_text(json.dumps({**said, **options}))
        return lors("merge", section, status=status).stderr

    assert "nothing for model.norm.weight" in merged(2, {norm: None})
    assert f"nothing for {FIRST}.bias" in merged(2, {bias: None})
    assert "model.norm" in merged(2, {}, modules_to_save=said["modules_to_save"][:-1])
    assert "base_layer" in merged(2, {}, bias="none")
    assert "needs the shape" in merged(2, {norm: torch.ones(16)})
    assert "NaN" in merged(2, {norm: torch.full((32,), float("nan"))})
    assert "a list of names" in merged(2, {}, modules_to_save="norm")
    foreign = f"{adapter_file.PREFIX}model.layers.0.mlp.gain"
    assert "gain is neither" in merged(2, {foreign: torch.ones(3)}, modules_to_save=[*said["modules_to_save"], "mlp"])
    assert "modules_to_save" in merged(2, {}, modules_to_save=[*said["modules_to_save"], "o_proj"])
    merged(0, {})


def test_other_loops_load_them_and_do_not_save_them(lors: Lors, write_config: WriteConfig, tmp_path: Path) -> None:
    config = write_config(train__also=["norms"], eval__models=["tuned", "merged"])
    lors("run", config)
    results = json.loads((tmp_path / "run/eval/results.json").read_text())["models"]
    values = [results[name]["perplexity"]["value"] for name in ("tuned", "merged")]
    assert values[0] == pytest.approx(values[1], rel=1e-6)
    model = load_adapter(AutoModelForCausalLM.from_pretrained(tmp_path / "run/pruned"), tmp_path / "run/adapter")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "run/merged")
    torch.testing.assert_close(logits(model), logits(merged), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="only `lors train` trains and saves"):
        save_adapter(model, tmp_path / "saved")
    assert "model.norm.weight" in lors("inspect", tmp_path / "run/adapter", "--modules").stdout
    assert "5 vectors of norms" in lors("push", tmp_path / "run/adapter", "me/x", "--dry-run").stdout
