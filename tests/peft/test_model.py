"""Adapters of ours in PEFT: the numbers of `attach`, its files, and merging that keeps the zeros."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
from typer.testing import Result

pytest.importorskip("peft")

from peft import PeftModel, get_peft_model

from lors_cli.api import attach, load_adapter, save_adapter, start_from_gradient
from lors_cli.peft import LorsConfig, SPPConfig, SQFTConfig
from tests.test_api import batch, merge_and_compare, step

CONFIGS = {"lors": LorsConfig, "spp": SPPConfig, "sqft": SQFTConfig}
Of = Callable[..., Any]


@pytest.fixture
def fresh(pruned: Path) -> Of:
    return lambda **options: AutoModelForCausalLM.from_pretrained(pruned, **options)


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        result: Tensor = model.eval()(batch(2)["input_ids"]).logits
    return result


def in_both(fresh: Of, method: str) -> tuple[Any, Any]:
    """The same adapters, attached and in PEFT."""
    torch.manual_seed(0)
    attached = attach(fresh(), method=method, rank=4, alpha=10 / 3)
    torch.manual_seed(0)
    return attached, get_peft_model(fresh(), CONFIGS[method](r=4, lora_alpha=10 / 3))


def trained(model: Any) -> dict[str, Tensor]:
    """What is trained, by the linear and the name."""
    names = {
        n.removeprefix("base_model.model.").replace(".adapters.default.", "."): p for n, p in model.named_parameters()
    }
    return {name: tensor for name, tensor in names.items() if tensor.requires_grad}


@pytest.mark.parametrize("method", list(CONFIGS))
def test_a_plain_loop(
    fresh: Of,
    lors: Callable[..., Result],
    write_config: Callable[..., Path],
    pruned: Path,
    tmp_path: Path,
    method: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    attached, model = in_both(fresh, method)
    model.print_trainable_parameters()
    assert f"trainable params: {sum(p.numel() for p in trained(attached).values()):,} " in capsys.readouterr().out
    if method != "spp":
        start_from_gradient(attached, [batch()])
        torch.manual_seed(0)
        start_from_gradient(model, [batch()])
        torch.manual_seed(0)
        start_from_gradient(attached, [batch()])
    for one in (attached, model):
        one(**batch()).loss.backward()
    gradients: dict[str, Any] = {name: tensor.grad for name, tensor in trained(attached).items()}
    assert trained(model).keys() == gradients.keys()
    for name, tensor in trained(model).items():
        assert tensor.grad is not None
        assert torch.equal(tensor.grad, gradients[name])
    assert step(attached) == step(model)
    after = logits(model)
    assert torch.equal(after, logits(attached))

    model.save_pretrained(tmp_path / "peft")
    save_adapter(attached, tmp_path / "ours")
    save_adapter(model, tmp_path / "both")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "both" / name).read_bytes() == (tmp_path / "ours" / name).read_bytes()
    for directory in (tmp_path / "peft", tmp_path / "ours"):
        for low in (False, True):
            loaded = PeftModel.from_pretrained(fresh(), directory, low_cpu_mem_usage=low)
            assert torch.equal(logits(loaded), after)
        assert torch.equal(logits(load_adapter(fresh(), directory)), after)
    merge_and_compare(lors, write_config, pruned, tmp_path, tmp_path / "peft")
    written, merged = AutoModelForCausalLM.from_pretrained(tmp_path / "run/merged"), loaded.merge_and_unload()
    for name, tensor in written.named_parameters():
        assert torch.equal(tensor, merged.get_parameter(name)), name


def test_merging_keeps_every_zero_and_every_bit(fresh: Of) -> None:
    plain = fresh(dtype=torch.bfloat16)
    model = get_peft_model(copy.deepcopy(plain), LorsConfig(r=4))
    step(model)
    linear = model.base_model.model.model.layers[1].mlp.up_proj
    before, zeros = logits(model), linear.weight == 0
    model.merge_adapter()
    assert torch.equal(linear.weight == 0, zeros)
    assert torch.allclose(logits(model), before, atol=1e-2)
    with pytest.raises(ValueError, match="unmerge_adapter first"):
        save_adapter(model, "nowhere")
    with model.disable_adapter():  # which unmerges
        assert torch.equal(logits(model), logits(plain))
    assert torch.equal(logits(model), before)
    model.merge_adapter()
    model.unmerge_adapter()
    assert torch.equal(linear.weight, plain.model.layers[1].mlp.up_proj.weight)

    with torch.no_grad():
        linear.adapters["default"].lora_B.fill_(float("inf"))
    with pytest.raises(ValueError, match="not finite; nothing was changed"):
        model.merge_and_unload()
    assert not any(getattr(module, "merged", False) for module in model.modules())
    linear.adapters["default"].effective_weight = torch.ones_like  # a method that does not keep the zeros
    with pytest.raises(ValueError, match=r"\d+ zeros would come back"):
        model.merge_adapter()
    assert torch.equal(logits(model.unload()), logits(plain))


def test_several_adapters(fresh: Of, tmp_path: Path) -> None:
    model = get_peft_model(fresh(), LorsConfig(r=4))
    step(model, 1)
    first = logits(model)
    model.add_adapter("second", LorsConfig(r=2, target_modules=["q_proj"]))
    assert torch.equal(logits(model), first)
    model.set_adapter("second")
    assert torch.equal(logits(model), logits(fresh()))
    assert {name.split(".")[-4] for name in trained(model)} == {"q_proj"}
    step(model, 2)
    second = logits(model)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(fresh(), tmp_path)), first)
    assert torch.equal(logits(PeftModel.from_pretrained(fresh(), tmp_path / "second")), second)
    both = PeftModel.from_pretrained(fresh(), tmp_path, low_cpu_mem_usage=True)
    both.load_adapter(tmp_path / "second", "second", low_cpu_mem_usage=True)  # which most layers do not have
    assert torch.equal(logits(both), first)
    both.set_adapter("second")
    assert torch.equal(logits(both), second)
    save_adapter(model, tmp_path / "ours")
    assert torch.equal(logits(load_adapter(fresh(), tmp_path / "ours")), second)
    for together in (
        lambda: model.base_model.set_adapter(["default", "second"]),
        lambda: model.merge_adapter(["default", "second"]),
    ):
        with pytest.raises(ValueError, match=r"one (active|merged) adapter at a time, got default, second"):
            together()
    with pytest.raises(ValueError, match="adapter_names: all rows"):
        model(**batch(), adapter_names=["default", "second"])
    model.delete_adapter("second")
    assert torch.equal(logits(model), first)


def test_what_cannot_be_adapted_or_loaded(fresh: Of, tmp_path: Path) -> None:
    model = fresh()
    for options, said in (
        ({"r": 100}, "a rank of at most 16"),
        ({"r": 20, "target_modules": "all-linear"}, "r=20: a rank of at most 16"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "got model.embed_tokens, a Embedding"),
    ):
        with pytest.raises(ValueError, match=said):
            get_peft_model(model, LorsConfig(**options))
        assert all(type(m) is not Tensor for m in model.modules())
        assert type(model.model.layers[0].self_attn.q_proj) is torch.nn.Linear
    with pytest.raises(ValueError, match="use get_peft_model"):
        model.add_adapter(LorsConfig())  # transformers' own way would load tensors with the names of LoRA alone

    adapted = get_peft_model(fresh(), LorsConfig(r=4, target_modules=["q_proj", "lm_head"]))
    with pytest.raises(ValueError, match="lm_head shares its weight"):
        adapted.merge_and_unload()
    save_adapter(adapted, tmp_path / "adapter")
    with pytest.raises(ValueError, match="use get_peft_model"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")
    other = fresh()
    with torch.no_grad():
        other.model.layers[0].self_attn.q_proj.weight[0] = 0
    with pytest.raises(ValueError, match=r"another model: this one has another mask in .*q_proj"):
        PeftModel.from_pretrained(other, tmp_path / "adapter")
    adapted = get_peft_model(fresh(), LorsConfig(r=4))
    adapted.save_pretrained(tmp_path / "by PEFT")
    assert PeftModel.from_pretrained(fresh(), tmp_path / "by PEFT")
    other = fresh()
    with torch.no_grad():
        other.model.layers[0].self_attn.q_proj.weight[0] = 0
    with pytest.raises(ValueError, match="another model: the zeros of this one are elsewhere"):
        PeftModel.from_pretrained(other, tmp_path / "by PEFT")
    assert type(other.model.layers[0].self_attn.q_proj) is torch.nn.Linear
    assert get_peft_model(other, adapted.peft_config["default"])  # a config is no adapter
    more = get_peft_model(fresh(), LorsConfig(r=4, target_modules=["q_proj", "v_proj"]))
    with pytest.raises(ValueError, match=r"lm_head.lora_A.weight, which the model has no place for"):
        more.load_adapter(tmp_path / "adapter", "default")


def test_adapters_are_not_put_on_adapters(fresh: Of) -> None:
    adapted = get_peft_model(fresh(), LorsConfig(r=4))
    with pytest.raises(ValueError, match=r"got a PeftModel: use its add_adapter"):
        get_peft_model(adapted, SPPConfig(r=4))
    adapted.add_adapter("another", LorsConfig(r=2))
    assert get_peft_model(adapted.merge_and_unload(), SPPConfig(r=4))


def test_an_adapted_head_loads_beside_the_copy_of_it_that_peft_saves(fresh: Of, tmp_path: Path) -> None:
    adapted = get_peft_model(fresh(), LorsConfig(r=4, target_modules=["q_proj", "lm_head"]))
    with torch.no_grad():
        for tensor in trained(adapted).values():
            tensor.normal_()
    with pytest.warns(UserWarning, match="save_embedding_layers"):
        adapted.save_pretrained(tmp_path / "adapter")
    assert "base_model.model.lm_head.base_layer.weight" in load_file(tmp_path / "adapter/adapter_model.safetensors")
    assert torch.equal(logits(PeftModel.from_pretrained(fresh(), tmp_path / "adapter")), logits(adapted))
    other = fresh()
    with torch.no_grad():
        other.lm_head.weight[5, 0] += 1
    with pytest.raises(ValueError, match=r"another .*lm_head.base_layer.weight than this one"):
        PeftModel.from_pretrained(other, tmp_path / "adapter")


def test_transformers_trainer(fresh: Of, tmp_path: Path) -> None:
    """A checkpoint of it is an adapter directory, and a run that was stopped goes on from it."""
    rows = [{key: tensor[0] for key, tensor in batch(seed).items()} for seed in range(6)]
    options: dict[str, Any] = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "learning_rate": 1e-2}
    options |= {"save_steps": 2, "max_steps": 4, "per_device_train_batch_size": 2, "gradient_checkpointing": True}

    def train(place: str, **more: Any) -> Any:
        model = get_peft_model(fresh(), LorsConfig(r=4))
        torch.manual_seed(0)
        Trainer(model, TrainingArguments(tmp_path / place, **options), train_dataset=rows).train(**more)
        return model

    whole = train("whole")
    again = train("again", resume_from_checkpoint=tmp_path / "whole/checkpoint-2")
    assert torch.equal(logits(again), logits(whole))
    assert torch.equal(logits(load_adapter(fresh(), tmp_path / "whole/checkpoint-4")), logits(whole))


def test_sft_trainer(fresh: Of, pruned: Path, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    dataset = Dataset.from_list([{"text": "A pruned weight is zero."}, {"text": "A sparse model keeps its zeros."}])
    options: dict[str, Any] = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "learning_rate": 1e-2}

    def trainer(model: Any, **more: Any) -> Any:
        arguments = trl.SFTConfig(tmp_path / "sft", max_steps=3, save_strategy="no", **options)
        return trl.SFTTrainer(model, arguments, train_dataset=dataset, **more)

    ours, theirs = trainer(attach(fresh(), rank=4, alpha=16.0)), trainer(fresh(), peft_config=LorsConfig(r=4))
    assert isinstance(theirs.model, PeftModel)
    expected, got = trained(ours.model), trained(theirs.model)
    assert got.keys() == expected.keys()
    with torch.no_grad():
        for name, tensor in got.items():
            tensor.copy_(expected[name])  # TRL makes the adapters after it has drawn other numbers
    start = logits(ours.model)
    ours.train()
    theirs.train()
    for name, tensor in got.items():
        assert torch.allclose(tensor, expected[name], rtol=0, atol=1e-6), name
    assert torch.allclose(logits(theirs.model), logits(ours.model), rtol=0, atol=1e-6)
    assert not torch.allclose(logits(theirs.model), start, atol=1e-2)
